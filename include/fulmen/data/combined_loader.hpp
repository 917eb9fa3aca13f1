// Several training loaders as one, as Lightning's CombinedLoader: combined(CombineMode::max_size_cycle, a, b).
#pragma once

#include <fulmen/checkpoint/state.hpp>
#include <fulmen/data/loader.hpp>
#include <fulmen/data/position.hpp>
#include <fulmen/error.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <memory>
#include <optional>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

namespace fulmen {

/// How loaders of different sizes go together. Each mode is a type of its own, since what a batch is depends
/// on it.
struct CombineMode {
  /// A std::tuple of one batch of each, until the first loader has run out.
  static constexpr struct MinSize {
  } min_size{};
  /// A std::tuple of one batch of each, until every loader has run out once; one that runs out begins anew.
  static constexpr struct MaxSizeCycle {
  } max_size_cycle{};
  /// A std::tuple of std::optional batches, until all loaders have run out; empty where one has.
  static constexpr struct MaxSize {
  } max_size{};
  /// The batches of one loader after those of the other. All have the same type of batch.
  static constexpr struct Sequential { } sequential{}; };

namespace detail {

/// The range behind a loader or a pointer to one.
template <class L>
using RangeOf = std::remove_reference_t<decltype(loader_of(std::declval<L&>(), ""))>;

template <class L>
inline constexpr bool can_stop_shuffling = requires(L& loader) {
  { loader.shuffles() } -> std::convertible_to<bool>;
  loader.shuffle(false);
};

template <class First, class... More>
inline constexpr bool all_same = (std::is_same_v<First, More> && ...);

}  // namespace detail

/// @tparam Mode one of CombineMode
/// @tparam L    a loader (or a pointer to one): by reference where it was an lvalue, else by value
template <class Mode, class... L>
class CombinedLoader {
  static_assert(sizeof...(L) > 0, "fulmen: combined(mode, loaders...): expected at least one loader");
  static constexpr bool sequential = std::is_same_v<Mode, CombineMode::Sequential>,
                        fits = !sequential || detail::all_same<detail::BatchOf<detail::RangeOf<L>>...>;
  static_assert(
      fits, "fulmen: combined(CombineMode::sequential, ...): all loaders must give the same type of batch");
  using Indices = std::index_sequence_for<L...>;

  static constexpr std::size_t count = sizeof...(L);

  /// A walk through one loader. A loader's end() may change with begin(), so both are taken together.
  template <class Range>
  struct Walk {
    Range* range;
    decltype(std::declval<Range&>().begin()) at;
    decltype(std::declval<Range&>().end()) end;

    Walk(Range& r, decltype(r.begin()) it) : range(&r), at(std::move(it)), end(r.end()) {}
    bool over() const { return !(at != end); }
  };

  /// Where the walk under way is.
  struct Place {
    bool begun[count] = {}, over[count] = {};
    bool consumed[count] = {};         // max_size_cycle: has run out once
    std::int64_t passed[count] = {};   // batches behind which the loader's walk is
    std::size_t current = 0;           // sequential: the running loader
    bool taken = false;                // `*` was called for the batch at this place
  };

 public:
  explicit CombinedLoader(L&&... loaders) : loaders_(std::forward<L>(loaders)...) {}

  class Iterator {
   public:
    explicit Iterator(CombinedLoader& all) : all_(&all) { start_all(); }

    /// @throws std::runtime_error if the state is of other loaders
    Iterator(CombinedLoader& all, const State& state) : all_(&all) {
      all.place_ = {};
      const auto parts = state.get<std::vector<State>>("parts");
      if (parts.size() != count) {
        fail("the state of a combined loader is of {} loaders, expected {}", parts.size(), count);
      }
      place().current = state.get<std::size_t>("current");
      each([&](auto i) { resume<i>(parts[i]); });
      look();
      if (done_) todo_ = Todo::start, done_ = false;
    }

    auto operator*() {
      settle();
      if constexpr (sequential) {
        using Batch = detail::BatchOf<std::tuple_element_t<0, std::tuple<detail::RangeOf<L>...>>>;
        std::optional<Batch> batch;
        if constexpr (fits) {
          each([&](auto i) {
            if (i == place().current) batch.emplace(*walk<i>().at);
          });
        }
        place().taken = true;
        return std::move(*batch);
      } else {
        return [&]<std::size_t... I>(std::index_sequence<I...>) {
          std::tuple<Item<I>...> batch{item<I>()...};
          place().taken = true;
          return batch;
        }
        (Indices{});
      }
    }

    Iterator& operator++() {
      settle();
      each([&](auto i) {
        if ((sequential && i != place().current) || over<i>()) return;
        ++walk<i>().at;
        ++place().passed[i];
      });
      place().taken = false;
      todo_ = Todo::settle;
      return *this;
    }
    void operator++(int) { ++*this; }
    bool operator==(std::default_sentinel_t) const {
      settle();
      return done_;
    }

   private:
    template <std::size_t I>
    using Range = std::tuple_element_t<I, std::tuple<detail::RangeOf<L>...>>;
    template <std::size_t I>
    using Item = std::conditional_t<std::is_same_v<Mode, CombineMode::MaxSize>,
                                    std::optional<detail::BatchOf<Range<I>>>, detail::BatchOf<Range<I>>>;
    // Beginning a loader may draw random numbers. A walk that goes on from a state draws them when it is used first, as the
    // uninterrupted one does behind whatever follows a batch: so all that is put off.
    enum class Todo : unsigned char { nothing, settle, start };

    template <class F>
    static void each(F&& f) {
      [&]<std::size_t... I>(std::index_sequence<I...>) { (f(std::integral_constant<std::size_t, I>{}), ...); }
      (Indices{});
    }
    Place& place() const { return all_->place_; }
    template <std::size_t I>
    Range<I>& range() const {
      return detail::loader_of(std::get<I>(all_->loaders_), "combined");
    }
    template <std::size_t I>
    auto& walk() const {
      return *std::get<I>(walks_);
    }
    template <std::size_t I>
    bool over() const {
      return !std::get<I>(walks_) || walk<I>().over();
    }
    template <std::size_t I>
    void start() const {
      auto& walk = std::get<I>(walks_);
      walk.reset();
      walk.emplace(range<I>(), std::get<I>(all_->positions_).begin(range<I>()));
      place().begun[I] = true;
      place().passed[I] = 0;
      // One of our own kind may have put off to draw: then now, before the next one draws.
      if constexpr (detail::LoaderWithState<Range<I>>) static_cast<void>(walk->over());
    }
    void start_all() const {
      place() = {};
      if constexpr (sequential) {
        start<0>();
      } else {
        each([&](auto i) { start<i>(); });
      }
      todo_ = Todo::settle;
    }
    template <std::size_t I>
    void resume(const State& part) {
      Range<I>& loader = range<I>();
      const auto taken = part.get<std::int64_t>("taken");
      place().consumed[I] = part.get<bool>("consumed");
      place().begun[I] = part.get<bool>("begun");
      if (!place().begun[I]) return;
      const State position = part.get<State>("position");
      place().passed[I] = taken;
      const bool was_last = part.get<bool>("over") || taken >= detail::loader_size(loader).value_or(taken + 1);
      if constexpr (detail::LoaderWithState<Range<I>>) {
        // It would begin its next epoch.
        if (was_last || (sequential && I != place().current)) return loader.load_state_dict(position.get<State>("loader"));
      } else if (sequential && I != place().current) {
        return;
      }
      std::get<I>(all_->positions_).go_on(loader, position);
      std::get<I>(walks_).emplace(loader, std::get<I>(all_->positions_).begin(loader, taken));
    }
    template <std::size_t I>
    Item<I> item() {
      if constexpr (std::is_same_v<Mode, CombineMode::MaxSize>) {
        if (place().over[I]) return std::nullopt;
      }
      return *walk<I>().at;
    }

    void settle() const {
      if (todo_ == Todo::nothing) [[likely]]
        return;
      if (todo_ == Todo::start) start_all();
      todo_ = Todo::nothing;
      look();
      if (done_) return;
      if constexpr (sequential) {
        each([&](auto i) {
          if (i != place().current || !place().over[i]) return;
          if constexpr (i + 1 < count) {
            ++place().current;
            start<i + 1>();
            look();
          }
        });
      } else if constexpr (std::is_same_v<Mode, CombineMode::MaxSizeCycle>) {
        each([&](auto i) {
          if (!place().over[i]) return;
          start<i>();
          place().over[i] = over<i>();
          done_ = done_ || place().over[i];  // it is empty: there is nothing to repeat
        });
      }
    }

    /// Finds out which loaders have run out, and whether there is another batch, as far as no loader is to be begun for that.
    void look() const {
      bool some_over = false, all_over = true;
      each([&](auto i) {
        const bool out = place().over[i] = over<i>();
        some_over = some_over || out;
        if (out) place().consumed[i] = true;
        all_over = all_over && (std::is_same_v<Mode, CombineMode::MaxSizeCycle> ? place().consumed[i] : out);
      });
      if constexpr (sequential)
        done_ = place().current + 1 == count && place().over[count - 1];
      else
        done_ = std::is_same_v<Mode, CombineMode::MinSize> ? some_over : all_over;
    }

    CombinedLoader* all_;
    mutable std::tuple<std::optional<Walk<detail::RangeOf<L>>>...> walks_;
    mutable Todo todo_ = Todo::settle;
    mutable bool done_ = false;
  };

  /// Begins an epoch: begins all loaders (in sequence: each when it is its turn). One walk at a time, as with
  /// the loaders. After load_state_dict() it goes on in the epoch of the state.
  Iterator begin() {
    if (const std::optional<State> state = std::exchange(loaded_, std::nullopt)) return Iterator(*this, *state);
    return Iterator(*this);
  }
  std::default_sentinel_t end() const { return {}; }

  /// Where the walk is that was begun last: behind the last batch that `*` was called for.
  State state_dict() {
    if (loaded_) return *loaded_;
    State state("CombinedLoader");
    std::vector<State> parts;
    const auto add = [&](auto& argument, auto& position, std::size_t i) {
      const bool active = sequential ? i == place_.current : !place_.over[i];
      State part;
      part.set("begun", place_.begun[i]).set("consumed", place_.consumed[i]).set("over", place_.over[i]);
      part.set("taken", place_.passed[i] + (place_.taken && active));
      if (place_.begun[i]) part.set("position", position.state(detail::loader_of(argument, "combined")));
      parts.push_back(part);
    };
    [&]<std::size_t... I>(std::index_sequence<I...>) {
      (add(std::get<I>(loaders_), std::get<I>(positions_), I), ...);
    }
    (Indices{});
    return state.set("parts", parts).set("current", place_.current);
  }
  /// The next begin() goes on behind the batches of the state; where they were an epoch's last, with the next epoch. Loaders
  /// that draw random numbers do so in begin() or `*`; those with a state_dict() of their own should have a size().
  void load_state_dict(const State& state) {
    const auto parts = state.get<std::vector<State>>("parts");
    const bool begun = std::any_of(parts.begin(), parts.end(), [](const State& part) { return part.get<bool>("begun"); });
    loaded_.reset();
    if (begun) loaded_ = state;
  }
  /// The epoch of a loaded state is over, though batches may be left: the next begin() begins another.
  void end_epoch() {
    if (!loaded_) return;
    const auto parts = std::exchange(loaded_, std::nullopt)->template get<std::vector<State>>("parts");
    std::size_t i = 0;
    const auto end = [&](auto& argument) {
      const State& part = parts.at(i++);
      auto& loader = detail::loader_of(argument, "combined");
      if constexpr (detail::LoaderWithState<std::remove_reference_t<decltype(loader)>>) {
        if (!part.get<bool>("begun")) return;
        loader.load_state_dict(part.get<State>("position").template get<State>("loader"));
        if constexpr (requires { loader.end_epoch(); }) loader.end_epoch();
      }
    };
    std::apply([&](auto&... argument) { (end(argument), ...); }, loaders_);
  }

  /// Whether one of the loaders shuffles, as far as they can tell.
  bool shuffles() {
    bool found = false;
    each_that_shuffles([&](auto& loader, bool&) { found = found || loader.shuffles(); });
    return found;
  }
  /// Stops those that shuffle from it, or lets them shuffle again. From the next epoch on.
  void shuffle(bool on) {
    each_that_shuffles([&](auto& loader, bool& stopped) {
      if (on ? !stopped : !loader.shuffles()) return;
      loader.shuffle(on);
      stopped = !on;
    });
  }

  /// Batches in an epoch.
  std::int64_t size() const requires(detail::has_size<detail::RangeOf<L>>&&...) {
    return std::apply(
        [](auto&... loader) {
          const auto of = [](const auto& one) -> std::int64_t {
            if constexpr (detail::has_size<std::remove_cvref_t<decltype(one)>>)
              return one.size();
            else
              return one->size();
          };
          if constexpr (sequential)
            return (of(loader) + ...);
          else if constexpr (std::is_same_v<Mode, CombineMode::MinSize>)
            return std::min({of(loader)...});
          else
            return std::max({of(loader)...});
        },
        loaders_);
  }

 private:
  template <class F>
  void each_that_shuffles(F&& f) {
    const auto one = [&](auto& argument, bool& stopped) {
      auto& loader = detail::loader_of(argument, "combined");
      if constexpr (detail::can_stop_shuffling<std::remove_reference_t<decltype(loader)>>) f(loader, stopped);
    };
    [&]<std::size_t... I>(std::index_sequence<I...>) { (one(std::get<I>(loaders_), stopped_[I]), ...); }
    (Indices{});
  }

  std::tuple<L...> loaders_;
  std::tuple<detail::LoaderPosition<detail::RangeOf<L>>...> positions_;
  Place place_;
  std::optional<State> loaded_;
  bool stopped_[count] = {};  // from shuffling, by shuffle(false)
};

/// @param mode CombineMode::min_size, max_size_cycle (Lightning's default), max_size or sequential
/// @param loaders ranges of batches or pointers to them; an lvalue is referred to and must outlive the result
template <class Mode, class... L>
auto combined(Mode, L&&... loaders) {
  constexpr bool are_loaders =
      ((Loader<std::remove_reference_t<L>> || detail::LoaderPointer<std::remove_reference_t<L>>)&&...);
  static_assert(
      are_loaders,
      "fulmen: combined(mode, loaders...): a loader must be a range of batches or a pointer to one");
  if constexpr (are_loaders) return CombinedLoader<Mode, L...>(std::forward<L>(loaders)...);
}

}  // namespace fulmen
