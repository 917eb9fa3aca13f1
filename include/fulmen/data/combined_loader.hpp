// Several training loaders as one, as Lightning's CombinedLoader: combined(CombineMode::max_size_cycle, a, b).
#pragma once

#include <fulmen/data/loader.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <memory>
#include <optional>
#include <tuple>
#include <type_traits>
#include <utility>

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

  /// A walk through one loader. A loader's end() may change with begin(), so both are taken together.
  template <class Range>
  struct Walk {
    Range* range;
    decltype(std::declval<Range&>().begin()) at;
    decltype(std::declval<Range&>().end()) end;

    explicit Walk(Range& r) : range(&r), at(r.begin()), end(r.end()) {}
    bool over() const { return !(at != end); }
  };

 public:
  explicit CombinedLoader(L&&... loaders) : loaders_(std::forward<L>(loaders)...) {}

  class Iterator {
   public:
    explicit Iterator(CombinedLoader& all) : all_(&all) {
      if constexpr (sequential) {
        start<0>();
        skip_empty();
      } else {
        each([&](auto i) { start<i>(); });
        settle();
      }
    }

    auto operator*() {
      if constexpr (sequential) {
        using Batch = detail::BatchOf<std::tuple_element_t<0, std::tuple<detail::RangeOf<L>...>>>;
        std::optional<Batch> batch;
        if constexpr (fits) {
          each([&](auto i) {
            if (i == current_) batch.emplace(*walk<i>().at);
          });
        }
        return std::move(*batch);
      } else {
        return [&]<std::size_t... I>(std::index_sequence<I...>) {
          return std::tuple<Item<I>...>{item<I>()...};
        }
        (Indices{});
      }
    }

    Iterator& operator++() {
      if constexpr (sequential) {
        each([&](auto i) {
          if (i == current_) ++walk<i>().at;
        });
        skip_empty();
      } else {
        each([&](auto i) {
          if (!walk<i>().over()) ++walk<i>().at;
        });
        settle();
      }
      return *this;
    }
    void operator++(int) { ++*this; }
    bool operator==(std::default_sentinel_t) const { return done_; }

   private:
    template <std::size_t I>
    using Range = std::tuple_element_t<I, std::tuple<detail::RangeOf<L>...>>;
    template <std::size_t I>
    using Item = std::conditional_t<std::is_same_v<Mode, CombineMode::MaxSize>,
                                    std::optional<detail::BatchOf<Range<I>>>, detail::BatchOf<Range<I>>>;

    template <class F>
    static void each(F&& f) {
      [&]<std::size_t... I>(std::index_sequence<I...>) { (f(std::integral_constant<std::size_t, I>{}), ...); }
      (Indices{});
    }
    template <std::size_t I>
    auto& walk() {
      return *std::get<I>(walks_);
    }
    template <std::size_t I>
    void start() {
      std::get<I>(walks_).emplace(detail::loader_of(std::get<I>(all_->loaders_), "combined"));
    }
    template <std::size_t I>
    Item<I> item() {
      if constexpr (std::is_same_v<Mode, CombineMode::MaxSize>) {
        if (walk<I>().over()) return std::nullopt;
      }
      return *walk<I>().at;
    }

    /// Finds out whether there is another batch, and begins loaders anew where the mode says so.
    void settle() {
      bool some_over = false, all_over = true;
      each([&](auto i) {
        const bool over = walk<i>().over();
        some_over = some_over || over;
        if (over) consumed_[i] = true;
        all_over = all_over && (std::is_same_v<Mode, CombineMode::MaxSizeCycle> ? consumed_[i] : over);
      });
      done_ = std::is_same_v<Mode, CombineMode::MinSize> ? some_over : all_over;
      if constexpr (std::is_same_v<Mode, CombineMode::MaxSizeCycle>) {
        if (done_ || !some_over) return;
        each([&](auto i) {
          if (!walk<i>().over()) return;
          start<i>();
          done_ = done_ || walk<i>().over();  // it is empty: there is nothing to repeat
        });
      }
    }

    void skip_empty() {
      each([&](auto i) {
        if (i != current_ || !walk<i>().over()) return;
        ++current_;
        if constexpr (i + 1 < sizeof...(L))
          start<i + 1>();
        else
          done_ = true;
      });
    }

    CombinedLoader* all_;
    std::tuple<std::optional<Walk<detail::RangeOf<L>>>...> walks_;
    bool consumed_[sizeof...(L)] = {};
    std::size_t current_ = 0;  // sequential: the running loader
    bool done_ = false;
  };

  /// Begins an epoch: begins all loaders (in sequence: each when it is its turn). One walk at a time, as with
  /// the loaders.
  Iterator begin() { return Iterator(*this); }
  std::default_sentinel_t end() const { return {}; }

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
  bool stopped_[sizeof...(L)] = {};  // from shuffling, by shuffle(false)
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
