// The clock of callbacks that measure time.
#pragma once

#include <chrono>

namespace fulmen::detail {

/// Seconds of std::chrono::steady_clock.
inline double steady_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace fulmen::detail
