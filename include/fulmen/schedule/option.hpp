// What options of schedulers are made of: one that must be given, and one value for all parameter groups or one for
// each.
#pragma once

#include <fulmen/compiled.hpp>
#include <fulmen/error.hpp>

#include <cstddef>
#include <initializer_list>
#include <stdexcept>
#include <utility>
#include <vector>

namespace fulmen {

/// An option without a default, as `step_size` of StepLR is in Python: leaving it out does not compile ("use of
/// deleted function Required::Required"; a static_assert would make asking whether a policy can be made from nothing
/// an error, as std::tuple does).
template <class T>
class Required {
 public:
  Required() = delete;
  Required(T value) : value_(std::move(value)) {}
  operator const T&() const { return value_; }

 private:
  T value_;
};

/// A number for all parameter groups, or one for each: `.max_lr = 0.1`, `.max_lr = {0.1, 0.01}`.
class GroupValues {
 public:
  GroupValues() = default;
  GroupValues(double value) : values_{value} {}
  GroupValues(std::initializer_list<double> values) : values_(values), each_(true) {}
  explicit GroupValues(std::vector<double> values) : values_(std::move(values)), each_(true) {}

  /// Whether there is any.
  bool given() const { return !values_.empty(); }
  double operator[](std::size_t group) const { return values_[each_ ? group : 0]; }

  /// @throws std::invalid_argument naming the option if there are not as many as groups
  void check(const char* option, std::size_t groups) const;

 private:
  std::vector<double> values_;
  bool each_ = false;
};

/// The same, without a default.
class RequiredGroupValues : public GroupValues {
 public:
  using GroupValues::GroupValues;
  RequiredGroupValues() = delete;
};

/// How OneCycleLR and SWALR go from one rate to the next.
enum class Anneal : bool { cos, linear };

namespace detail {

/// @throws std::invalid_argument unless low <= value <= high (NaN is out of range, too)
template <class T>
void check_range(const char* option, T value, T low, T high) {
  if (!(value >= low && value <= high)) {
    fail<std::invalid_argument>("{} is {}, expected {} to {}", option, value, low, high);
  }
}
/// @throws std::invalid_argument unless value >= low
template <class T>
void check_at_least(const char* option, T value, T low) {
  if (!(value >= low)) fail<std::invalid_argument>("{} is {}, expected at least {}", option, value, low);
}

}  // namespace detail

#if FULMEN_BODIES
FULMEN_INLINE void GroupValues::check(const char* option, std::size_t groups) const {
  if (each_ && values_.size() != groups) {
    fail<std::invalid_argument>(
        "{} has {} values, expected one, or one for each of the optimizer's {} parameter groups", option,
        values_.size(), groups);
  }
}
#endif

}  // namespace fulmen
