// The lazy ranges that predictors are made of: each item is made when it is asked for, one at a time.
#pragma once

#include <concepts>
#include <cstddef>
#include <iterator>
#include <optional>
#include <type_traits>
#include <utility>

namespace fulmen {

namespace detail {

/// Whatever a range-for loop can walk.
template <class R>
concept Walkable = requires(R& range) {
  { std::begin(range) != std::end(range) } -> std::convertible_to<bool>;
  *std::begin(range);
};

/// `f(item)` for each item of a range, called when the item is asked for and not before. Walked once, each item read
/// once.
///
/// @tparam R, F references where the range or function outlives this, values where this owns it
template <class R, class F>
class Mapped {
  using Base = decltype(std::begin(std::declval<R&>()));
  using BaseEnd = decltype(std::end(std::declval<R&>()));

 public:
  constexpr Mapped(R&& range, F&& f) : range_(std::forward<R>(range)), f_(std::forward<F>(f)) {}

  struct Sentinel {
    BaseEnd end;
  };
  class Iterator {
   public:
    using reference = decltype(std::declval<F&>()(*std::declval<Base&>()));
    using value_type = std::remove_cvref_t<reference>;
    using difference_type = std::ptrdiff_t;
    using iterator_concept = std::input_iterator_tag;

    constexpr Iterator(Base base, std::remove_reference_t<F>* f) : base_(std::move(base)), f_(f) {}
    constexpr reference operator*() const { return (*f_)(*base_); }
    constexpr Iterator& operator++() {
      ++base_;
      return *this;
    }
    constexpr void operator++(int) { ++base_; }
    constexpr bool operator==(const Sentinel& sentinel) const { return !(base_ != sentinel.end); }

   private:
    mutable Base base_;  // iterators of users' ranges need not be readable through const
    std::remove_reference_t<F>* f_;
  };

  constexpr Iterator begin() { return {std::begin(range_), std::addressof(f_)}; }
  constexpr Sentinel end() { return {std::end(range_)}; }

 private:
  R range_;
  F f_;
};

/// Owns what it is given as an rvalue and refers to what it is given as an lvalue.
template <class R, class F>
constexpr Mapped<R, F> mapped(R&& range, F&& f) {
  return {std::forward<R>(range), std::forward<F>(f)};
}

/// What `next()` gives, a std::optional, until that is empty. Holds one item at a time; walked once.
template <class Next>
class Pulled {
  using Item = typename std::invoke_result_t<Next&>::value_type;

 public:
  constexpr explicit Pulled(Next next) : next_(std::move(next)) {}

  class Iterator {
   public:
    using reference = Item&;
    using value_type = Item;
    using difference_type = std::ptrdiff_t;
    using iterator_concept = std::input_iterator_tag;

    constexpr explicit Iterator(Pulled* of) : of_(of) {}
    constexpr Item& operator*() const { return *of_->item_; }
    constexpr Iterator& operator++() {
      of_->pull();
      return *this;
    }
    constexpr void operator++(int) { of_->pull(); }
    constexpr bool operator==(std::default_sentinel_t) const { return !of_->item_; }

   private:
    Pulled* of_;
  };

  constexpr Iterator begin() {
    pull();
    return Iterator(this);
  }
  constexpr std::default_sentinel_t end() const { return {}; }

 private:
  constexpr void pull() {
    item_.reset();  // before the next is made: never two at a time
    item_ = next_();
  }

  Next next_;
  std::optional<Item> item_;
};

/// The numbers 0, …, size - 1.
struct Indices {
  std::ptrdiff_t size;

  struct Iterator {
    std::ptrdiff_t i;
    constexpr std::ptrdiff_t operator*() const { return i; }
    constexpr Iterator& operator++() {
      ++i;
      return *this;
    }
    constexpr bool operator==(const Iterator&) const = default;
  };
  constexpr Iterator begin() const { return {0}; }
  constexpr Iterator end() const { return {size}; }
};

}  // namespace detail
}  // namespace fulmen
