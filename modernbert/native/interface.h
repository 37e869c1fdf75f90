// What Python calls by name, through a plain C interface.
#pragma once
#define EXPORT extern "C" __attribute__((visibility("default")))
