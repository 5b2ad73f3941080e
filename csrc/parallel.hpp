// Threads for the core: a fixed number of equal workers that all end before the call returns.
#pragma once

#include <cstddef>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace teramind {

// Calls work(0) ... work(threads - 1), each on a thread of its own (work(0) on the caller's), waits for all of them
// and rethrows the first exception that one of them threw. `threads` is at least 1.
template <class Work>
void run_parallel(std::size_t threads, const Work& work) {
  std::exception_ptr failure;
  std::mutex mutex;
  const auto guarded = [&](std::size_t worker) noexcept {
    try {
      work(worker);
    } catch (...) {
      const std::lock_guard lock(mutex);
      if (!failure) failure = std::current_exception();
    }
  };
  {
    std::vector<std::jthread> helpers;  // joined at the end of the block, also when a thread cannot be started
    helpers.reserve(threads - 1);
    for (std::size_t worker = 1; worker < threads; ++worker) helpers.emplace_back(guarded, worker);
    guarded(0);
  }
  if (failure) std::rethrow_exception(failure);
}

}  // namespace teramind
