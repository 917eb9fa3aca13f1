// Has valgrind count the instructions of a part of a program; bench/callgrind.py starts the program and reads the counts.
#pragma once

#include <cstdint>
#include <string>

#if __has_include(<valgrind/callgrind.h>)
#include <valgrind/callgrind.h>
#else
#define CALLGRIND_START_INSTRUMENTATION
#define CALLGRIND_STOP_INSTRUMENTATION
#define CALLGRIND_ZERO_STATS
#define CALLGRIND_DUMP_STATS_AT(label) static_cast<void>(label)
#endif

/// Does `run(number)` of something: to warm up, once more, and with twice the number, so that what the last two differ in is
/// the things and nothing around them.
template <class Run>
void count_instructions(const std::string& name, std::int64_t number, Run&& run) {
  for (const std::int64_t n : {number, number, 2 * number}) {
    const std::string label = name + "," + std::to_string(n);
    CALLGRIND_START_INSTRUMENTATION;
    CALLGRIND_ZERO_STATS;
    run(n);
    CALLGRIND_DUMP_STATS_AT(label.c_str());
    CALLGRIND_STOP_INSTRUMENTATION;
  }
}
