// What a loader is: any range of batches. Pointers to one (as torch::data makes them) and a single tensor serve as well.
#pragma once

#include <fulmen/data/batch.hpp>
#include <fulmen/error.hpp>
#include <fulmen/none.hpp>

#include <array>
#include <concepts>
#include <cstdint>
#include <optional>
#include <tuple>
#include <type_traits>
#include <utility>

namespace fulmen {

/// Anything a range-for loop can walk, each item a batch. With a `size()` (the number of batches) the loop can show how
/// far it is and take fractions of it. Without one, the loop looks for the next item before it trains on this one, to know
/// which is the last: a loader that plays a game with the module does so in operator*, not in ++.
template <class L>
concept Loader = requires(L& loader) {
  { loader.begin() != loader.end() } -> std::convertible_to<bool>;
  ++std::declval<decltype(loader.begin())&>();
  *loader.begin();
};

namespace detail {

template <class L>
concept LoaderPointer = !Loader<L> && requires(L& pointer) {
  requires Loader<std::remove_reference_t<decltype(*pointer)>>;
  static_cast<bool>(pointer);
};

}  // namespace detail

/// What fit, validate, test and predict accept as a loader.
template <class L>
concept LoaderArgument = Loader<std::remove_reference_t<L>> || detail::LoaderPointer<std::remove_reference_t<L>> ||
                         detail::TensorLike<L>;

namespace detail {

/// Several loaders for one evaluation stage: a std::tuple of loader arguments.
template <class L>
inline constexpr bool is_loader_tuple = false;
template <class... L>
inline constexpr bool is_loader_tuple<std::tuple<L...>> = (LoaderArgument<L> && ...);
template <class L>
concept LoaderTuple = is_loader_tuple<std::remove_cvref_t<L>>;

/// The range behind a loader argument. @throws std::invalid_argument for a null pointer.
template <class L>
  requires LoaderArgument<L> || LoaderTuple<L>
decltype(auto) loader_of(L& argument, const char* called) {
  if constexpr (LoaderTuple<L>) {
    return (argument);
  } else if constexpr (TensorLike<L>) {
    return std::array<at::Tensor, 1>{argument};
  } else if constexpr (LoaderPointer<L>) {
    if (!argument) fail<std::invalid_argument>("{}: the loader is a null pointer, expected a range of batches", called);
    return *argument;
  } else {
    return (argument);
  }
}

template <class L>
inline constexpr bool has_size = requires(const std::remove_reference_t<L>& loader) {
  { loader.size() } -> std::convertible_to<std::int64_t>;
};

/// The number of batches, where the loader knows it.
template <class L>
std::optional<std::int64_t> loader_size(const L& loader) {
  if constexpr (has_size<L>) {
    return static_cast<std::int64_t>(loader.size());
  } else {
    return std::nullopt;
  }
}

/// Keeps a loader that can be told so from shuffling while this lives (Options::overfit_batches).
template <class L>
class Unshuffled {
  static constexpr bool can = requires(L& loader) {
    { loader.shuffles() } -> std::convertible_to<bool>;
    loader.shuffle(false);
  };

 public:
  Unshuffled(L& loader, [[maybe_unused]] bool wanted) : loader_(loader) {
    if constexpr (can) {
      stopped_ = wanted && loader_.shuffles();
      if (stopped_) loader_.shuffle(false);
    }
  }
  ~Unshuffled() {
    if constexpr (can) {
      if (stopped_) loader_.shuffle(true);
    }
  }
  Unshuffled(const Unshuffled&) = delete;
  Unshuffled& operator=(const Unshuffled&) = delete;

 private:
  [[maybe_unused]] L& loader_;
  bool stopped_ = false;
};

template <class L>
using BatchOf = std::remove_cvref_t<decltype(*std::declval<L&>().begin())>;

/// The batch type of a loader, or of the first of several.
template <class L>
struct FirstBatch {
  using type = BatchOf<L>;
};
template <class First, class... More>
struct FirstBatch<std::tuple<First, More...>> {
  using type = BatchOf<decltype(loader_of(std::declval<std::remove_reference_t<First>&>(), ""))>;
};
template <class L>
using FirstBatchOf = typename FirstBatch<std::remove_cv_t<L>>::type;

}  // namespace detail

}  // namespace fulmen
