// How a Trainer runs: device, loggers, the callbacks every run gets. The seventh policy, defaulted.
#pragma once

#include <fulmen/compiled.hpp>

#include <c10/core/Device.h>

#include <optional>
#include <tuple>

#if FULMEN_BODIES
#include <ATen/Context.h>
#endif

namespace fulmen {

/// @tparam Loggers  std::tuple of loggers: each has log_metrics(ctx, metrics, step), and finalize(ctx) if it needs it
/// @tparam Defaults std::tuple of callbacks added to the user's, each left out where the user brings one of its type
template <class Loggers = std::tuple<>, class Defaults = std::tuple<>>
struct Runtime {
  std::optional<at::Device> device{};  ///< unset: the first GPU if there is one, else the CPU
  Loggers loggers{};
  Defaults defaults{};
};

/// Nothing but the loop: no progress bar, no summary, no log file, no checkpoint. What is not there costs nothing.
inline const Runtime<> barebones{};

namespace detail {
at::Device choose_device(const std::optional<at::Device>& wanted);
}  // namespace detail

#if FULMEN_BODIES
FULMEN_INLINE at::Device detail::choose_device(const std::optional<at::Device>& wanted) {
  if (wanted) return *wanted;
  return at::hasCUDA() && at::getNumGPUs() > 0 ? at::Device(at::kCUDA, 0) : at::Device(at::kCPU);
}
#endif

}  // namespace fulmen
