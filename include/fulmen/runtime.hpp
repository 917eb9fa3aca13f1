// How a Trainer runs: device, loggers, the callbacks every run gets, profiler, gradients. The seventh policy, defaulted.
#pragma once

#include <fulmen/compiled.hpp>
#include <fulmen/none.hpp>

#include <c10/core/Device.h>

#include <optional>
#include <tuple>
#include <utility>

#if FULMEN_BODIES
#include <ATen/Context.h>
#endif

namespace fulmen {

/// @tparam Loggers  std::tuple of loggers: each has log_metrics(ctx, metrics, step), and finalize(ctx) if it needs it
/// @tparam Defaults std::tuple of callbacks added to the user's, each left out where the user brings one of its type
/// The gradient policy: where the types of all layers are known (a module of fulmen::nn) and the step is the default one, forward and
/// backward are composed at compile time, and no graph is recorded; else as Autograd. See loop/gradients.hpp.
struct Composed {};
/// The gradient policy: autograd's graph, always.
struct Autograd {};

/// @tparam Profiler see profile/profiler.hpp; None: nothing is measured, and nothing of it is in the program
/// @tparam Gradients Composed or Autograd
template <class Loggers = std::tuple<>, class Defaults = std::tuple<>, class Profiler = None, class Gradients = Composed>
struct Runtime {
  using GradientPolicy = Gradients;

  std::optional<at::Device> device{};  ///< unset: the first GPU if there is one, else the CPU
  Loggers loggers{};
  Defaults defaults{};
  [[no_unique_address]] Profiler profiler{};

  /// The same with this profiler: `DefaultRuntime{}.with_profiler(SimpleProfiler{})`.
  template <class P>
  Runtime<Loggers, Defaults, P, Gradients> with_profiler(P other) && {
    return {device, std::move(loggers), std::move(defaults), std::move(other)};
  }
  template <class P>
  Runtime<Loggers, Defaults, P, Gradients> with_profiler(P other) const& {
    return {device, loggers, defaults, std::move(other)};
  }
  /// The same with this gradient policy: `DefaultRuntime{}.with_gradients(Autograd{})`.
  template <class G>
  Runtime<Loggers, Defaults, Profiler, G> with_gradients(G) && {
    return {device, std::move(loggers), std::move(defaults), std::move(profiler)};
  }
  template <class G>
  Runtime<Loggers, Defaults, Profiler, G> with_gradients(G) const& {
    return {device, loggers, defaults, profiler};
  }
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
