"""Cost model, device specifications, forecast of a run, model shapes, and `modernbert bench`."""
