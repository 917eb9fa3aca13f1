// Data modules: everything about the data of a run in one object, and how the stages get loaders from it.
#pragma once

#include <fulmen/checkpoint/state.hpp>
#include <fulmen/data/loader.hpp>
#include <fulmen/loop/hooks.hpp>

#include <cstdint>
#include <optional>
#include <type_traits>
#include <utility>

namespace fulmen {

/// A data module has a loader for each stage it serves: train_dataloader(), val_dataloader(), test_dataloader(),
/// predict_dataloader(), each by value, by reference or as a pointer. It may also answer prepare_data, setup, teardown,
/// on_exception, the batch transfer actions, and have state_dict() and load_state_dict(state).
template <class D>
concept DataModule = !LoaderArgument<D> && requires(std::remove_reference_t<D>& data) {
  requires requires { data.train_dataloader(); } || requires { data.val_dataloader(); } ||
               requires { data.test_dataloader(); } || requires { data.predict_dataloader(); };
};

namespace detail {

/// A loader together with the data module it comes from, whose transfer actions its batches go through.
template <class L, class D>
class LoaderOf {
 public:
  LoaderOf(L& loader, D& data) : loader_(&loader), data_(&data) {}
  auto begin() { return loader_->begin(); }
  auto end() { return loader_->end(); }
  auto size() const
    requires requires(const L& l) { l.size(); }
  {
    return loader_->size();
  }
  bool shuffles() const
    requires requires(const L& l) { l.shuffles(); }
  {
    return loader_->shuffles();
  }
  void shuffle(bool on)
    requires requires(L& l) { l.shuffle(true); }
  {
    loader_->shuffle(on);
  }
  auto state_dict()
    requires requires(L& l) { l.state_dict(); }
  {
    return loader_->state_dict();
  }
  template <class State>
  void load_state_dict(const State& state)
    requires requires(L& l) { l.load_state_dict(state); }
  {
    loader_->load_state_dict(state);
  }
  void end_epoch()
    requires requires(L& l) { l.end_epoch(); }
  {
    loader_->end_epoch();
  }
  D& data_module() const { return *data_; }

 private:
  L* loader_;
  D* data_;
};

/// Where a stage's loader comes from if it was given as such: always the same.
template <class L>
struct GivenLoader {
  L& given;
  L& loader(std::int64_t /*epoch*/) { return given; }
  void note_state(auto& /*ctx*/) {}
};

/// Where it comes from if a data module makes it: made at first use, and anew every `reload_every` epochs (0: never).
template <class D, class Make>
class LoaderFromData {
  using Made = std::invoke_result_t<Make, D&>;
  // A loader given by value lives here; one given by reference stays where it is.
  using Kept = std::conditional_t<std::is_reference_v<Made>, std::remove_reference_t<Made>*, Made>;

 public:
  LoaderFromData(D& data, Make make, std::int64_t reload_every)
      : data_(&data), make_(std::move(make)), reload_every_(reload_every) {}

  auto& loader(std::int64_t epoch) {
    if (!kept_ || (reload_every_ > 0 && epoch - made_at_ >= reload_every_)) {
      if constexpr (std::is_reference_v<Made>) kept_.emplace(&make_(*data_));
      else kept_.emplace(make_(*data_));
      made_at_ = epoch;
      auto& argument = made();
      using L = std::remove_reference_t<decltype(loader_of(argument, "a data module"))>;
      static_assert(std::is_lvalue_reference_v<decltype(loader_of(argument, "a data module"))>,
                    "fulmen: a data module gives ranges of batches or pointers to them, not a tensor");
      loader_.emplace(static_cast<L&>(loader_of(argument, "a data module")), *data_);
    }
    return *loader_;
  }

  /// Leaves the data module's state with the context, for whoever saves a checkpoint next.
  void note_state(auto& ctx) {
    if constexpr (requires { data_->state_dict(); }) ctx.data_state() = State(data_->state_dict());
  }

 private:
  static auto& deref(Kept& kept) {
    if constexpr (std::is_reference_v<Made>) return *kept;
    else return kept;
  }
  auto& made() { return deref(*kept_); }
  using Range = std::remove_reference_t<decltype(loader_of(deref(std::declval<Kept&>()), ""))>;

  D* data_;
  Make make_;
  std::int64_t reload_every_, made_at_ = 0;
  std::optional<Kept> kept_;
  std::optional<LoaderOf<Range, D>> loader_;
};

}  // namespace detail
}  // namespace fulmen
