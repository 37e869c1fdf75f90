// A thread pool for the whole process: the calling thread and workers claim the items of a loop one by one.
//
// The caller waits for claimed items, not for threads: a worker that the system does not schedule delays it only in the
// middle of an item. Waiting threads spin briefly, then sleep in the kernel, so that the thread they wait for can have
// their core. A caller that finds the pool in use, by another thread or by itself, runs its loop alone.
#pragma once
#include <pthread.h>
#include <signal.h>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <climits>
#include <cstdint>
#include <system_error>
#include <thread>
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace modernbert {

typedef std::atomic<uint32_t> Futex;

#if defined(__linux__)
inline void sleep_while(const Futex& word, uint32_t value) {
    syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
}
inline void wake_all(Futex& word) { syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0); }
#else  // C++20
inline void sleep_while(const Futex& word, uint32_t value) { word.wait(value); }
inline void wake_all(Futex& word) { word.notify_all(); }
#endif

inline void pause_spinning() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#else
    asm volatile("yield");
#endif
}

// Wait until a word changes. Sleeping and waking costs tens of microseconds, so a wait that would have been short spins
// longer next time, and a long one shorter.
class Waiter {
  public:
    template <class Ready>
    void wait(const Futex& word, std::atomic<bool>& is_asleep, const Ready& is_ready) {
        if (is_ready(word.load(std::memory_order_acquire))) return;
        const auto start = Clock::now();
        do {
            for (int i = 0; i < 16; ++i, pause_spinning())
                if (is_ready(word.load(std::memory_order_acquire))) return;
        } while (Clock::now() - start < spin);
        for (;;) {
            is_asleep.store(true);
            const uint32_t value = word.load();
            if (is_ready(value)) break;
            sleep_while(word, value);
        }
        spin = Clock::now() - start < MAX ? std::min(2 * spin, MAX) : std::max(spin / 2, MIN);
    }

  private:
    typedef std::chrono::steady_clock Clock;
    static constexpr Clock::duration MIN = std::chrono::microseconds(5), MAX = std::chrono::microseconds(200);
    Clock::duration spin = MAX;
};

class ThreadPool {
  public:
    typedef void (*Run)(const void* body, int64_t item);

    // Run all items, on at most `num_threads` threads, and return.
    void run(int num_threads, int64_t num_items, Run run, const void* body) {
        if (num_items > INT_MAX || is_taken.exchange(true)) {
            for (int64_t item = 0; item < num_items; ++item) run(body, item);
            return;
        }
        start_workers(num_threads - 1);
        loop_run.store(run, std::memory_order_release);
        loop_body.store(body, std::memory_order_release);
        loop_size.store(uint32_t(num_items), std::memory_order_release);
        loop_workers.store(num_threads - 1, std::memory_order_release);
        num_unfinished.store(uint32_t(num_items), std::memory_order_relaxed);
        const uint32_t number = loop_number.load(std::memory_order_relaxed) + 1;
        unclaimed.store(uint64_t(number) << 32 | uint32_t(num_items), std::memory_order_release);
        loop_number.store(number);
        if (is_worker_asleep.load() && is_worker_asleep.exchange(false)) wake_all(loop_number);
        claim_items();
        if (num_unfinished.load(std::memory_order_acquire))
            caller.wait(num_unfinished, is_caller_asleep, [](uint32_t left) { return left == 0; });
        is_taken.store(false, std::memory_order_release);
    }

  private:
    // Run items until none is left; return the number of the loop.
    uint32_t claim_items() {
        for (;;) {
            uint64_t before = unclaimed.load(std::memory_order_acquire);
            if (uint32_t(before) == 0) return uint32_t(before >> 32);
            const Run run = loop_run.load(std::memory_order_acquire);
            const void* body = loop_body.load(std::memory_order_acquire);
            const uint32_t item = loop_size.load(std::memory_order_acquire) - uint32_t(before);
            // Fails if the values above are those of a later loop: it starts when all items are claimed.
            if (!unclaimed.compare_exchange_weak(before, before - 1, std::memory_order_acq_rel)) continue;
            run(body, item);
            if (num_unfinished.fetch_sub(1) == 1 && is_caller_asleep.load() && is_caller_asleep.exchange(false))
                wake_all(num_unfinished);
        }
    }

    void work(int index) {
        Waiter waiter;
        for (uint32_t seen = 0;;) {
            waiter.wait(loop_number, is_worker_asleep, [&](uint32_t number) { return number != seen; });
            seen = loop_number.load();
            if (index < loop_workers.load(std::memory_order_acquire)) seen = claim_items();
        }
    }

    // Start workers up to a number, or as many as the system allows. Signals are left to other threads.
    void start_workers(int number) {
        if (num_workers >= number || !can_start) return;
        sigset_t all, before;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        try {
            for (; num_workers < number; ++num_workers) std::thread(&ThreadPool::work, this, num_workers).detach();
        } catch (const std::system_error&) {
            can_start = false;
        }
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
    }

    // Of the caller, which has the pool.
    std::atomic<bool> is_taken{false};
    int num_workers = 0;
    bool can_start = true;
    Waiter caller;
    // The present loop.
    std::atomic<Run> loop_run{nullptr};
    std::atomic<const void*> loop_body{nullptr};
    std::atomic<uint32_t> loop_size{0};
    std::atomic<int> loop_workers{0};
    alignas(64) Futex loop_number{0};
    std::atomic<bool> is_worker_asleep{false};
    alignas(64) std::atomic<uint64_t> unclaimed{0};  // the number of the loop << 32, and of its items to claim
    alignas(64) Futex num_unfinished{0};
    std::atomic<bool> is_caller_asleep{false};
};

// A forked process has none of the threads, so it gets a new pool. Never freed: workers use it until the process ends.
inline ThreadPool* start_pool();
inline ThreadPool* thread_pool = start_pool();
inline ThreadPool* start_pool() {
    pthread_atfork(nullptr, nullptr, [] { thread_pool = new ThreadPool; });
    return new ThreadPool;
}

// Call body(item) for each item, on at most `num_threads` threads, and return when all are done.
template <class Body>
void parallel_for(int num_threads, int64_t num_items, const Body& body) {
    if (num_threads < 2 || num_items < 2) {
        for (int64_t item = 0; item < num_items; ++item) body(item);
        return;
    }
    thread_pool->run(
        num_threads, num_items, [](const void* body, int64_t item) { (*static_cast<const Body*>(body))(item); }, &body);
}

}  // namespace modernbert
