// Where a walk through a loader is, so that a checkpoint saved in mid-epoch can go on with the next batch.
#pragma once

#include <fulmen/checkpoint/state.hpp>
#include <fulmen/compiled.hpp>
#include <fulmen/data/loader.hpp>
#include <fulmen/seed.hpp>

#include <ATen/core/Tensor.h>

#include <concepts>
#include <cstdint>
#include <optional>
#include <type_traits>
#include <utility>

#if FULMEN_BODIES
#include <stdexcept>
#endif

namespace fulmen::detail {

/// A loader that knows where it is: state_dict() counts the batches that `*` was called for, and after load_state_dict() the
/// next begin() goes on behind them; where they were an epoch's last, it begins the next one. If it has end_epoch(), that is
/// called after load_state_dict() where the epoch was over though batches of it were left (limit_train_batches, say).
template <class L>
concept LoaderWithState = requires(L& loader, const State& state) {
  { loader.state_dict() } -> std::convertible_to<State>;
  loader.load_state_dict(state);
};

[[noreturn, gnu::cold]] void fail_for_short_loader(std::int64_t taken, std::int64_t there);

/// Begins the walks through a loader, and remembers what leads back to a place in the one under way.
///
/// Of a loader with state that is its state. For any other it is the state of the default generator before begin(), where
/// such loaders draw their order, and the number of batches taken: begin() is called with that generator again, and the
/// batches are passed by with `++` alone. So a loader that draws from the default generator must do so in begin() or in `*`.
template <class L>
class LoaderPosition {
  static constexpr bool has_state = LoaderWithState<L>;

 public:
  using Iterator = decltype(std::declval<L&>().begin());

  /// The next walk is the one of this state; or, if its epoch was over, the one that comes after it.
  void go_on(L& loader, const State& state, bool in_epoch = true) {
    if constexpr (has_state) loader.load_state_dict(state.get<State>("loader"));
    else if (in_epoch) generator_ = state.get<at::Tensor>("generator");
    goes_on_ = has_state || in_epoch;
    if (!in_epoch) end_epoch(loader);
  }

  /// The walk that was to go on is over, whether the loader has given all its batches or not.
  void end_epoch([[maybe_unused]] L& loader) {
    if constexpr (requires { loader.end_epoch(); }) {
      if (goes_on_) loader.end_epoch();
    }
  }

  /// Begins a walk, behind `taken` batches. One that goes on is the same walk again, and leaves the default generator as it is.
  /// @throws std::runtime_error if the loader has fewer batches
  Iterator begin(L& loader, std::int64_t taken = 0) {
    const bool goes_on = std::exchange(goes_on_, false);
    if constexpr (has_state) {
      return skip(loader, loader.begin(), goes_on ? 0 : taken);
    } else if (goes_on) {
      const IsolatedGenerator isolated;
      set_generator_state(generator_);
      return skip(loader, loader.begin(), taken);
    } else {
      generator_ = generator_state();
      return skip(loader, loader.begin(), taken);
    }
  }

  State state([[maybe_unused]] L& loader) const {
    State state("loader");
    if constexpr (has_state) state.set("loader", State(loader.state_dict()));
    else state.set("generator", generator_);
    return state;
  }

 private:
  static Iterator skip(L& loader, Iterator it, std::int64_t batches) {
    if (batches == 0) return it;
    const auto end = loader.end();
    for (std::int64_t i = 0; i < batches; ++i) {
      if (!(it != end)) fail_for_short_loader(batches, i);
      ++it;
    }
    return it;
  }

  std::conditional_t<has_state, None, at::Tensor> generator_;
  bool goes_on_ = false;
};

#if FULMEN_BODIES
FULMEN_INLINE void fail_for_short_loader(std::int64_t taken, std::int64_t there) {
  fail("the epoch goes on behind its batch {}, but the loader has only {}: expected the loader it began with", taken, there);
}
#endif

}  // namespace fulmen::detail
