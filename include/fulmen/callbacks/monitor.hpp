// What callbacks that watch a logged value share: which values are the better ones, and what is said where there is none.
#pragma once

#include <fulmen/compiled.hpp>
#include <fulmen/loop/log.hpp>

#include <cstdint>
#include <string>
#include <string_view>

#if FULMEN_BODIES
#include <fulmen/error.hpp>
#endif

namespace fulmen {

/// Which direction of a monitored value is the better one.
enum class Mode : std::uint8_t { min, max };

namespace detail {

inline bool is_better(Mode mode, double value, double than) { return mode == Mode::min ? value < than : value > than; }

/// The message of a callback whose value was never logged.
std::string not_logged(std::string_view callback, std::string_view monitor, MetricStore& metrics);

#if FULMEN_BODIES
FULMEN_INLINE std::string not_logged(std::string_view callback, std::string_view monitor, MetricStore& metrics) {
  return detail::format("{}: '{}' was not logged; there is: {}", callback, monitor, metrics.callback_metrics().names());
}
#endif

}  // namespace detail
}  // namespace fulmen
