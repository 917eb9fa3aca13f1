// fulmen::State: what state_dict() gives and load_state_dict() takes, a dict of named values with readable
// errors.
#pragma once

#include <fulmen/compiled.hpp>

#include <ATen/core/Dict.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#if FULMEN_BODIES
#include <ATen/core/List.h>
#include <ATen/core/jit_type.h>

#include <stdexcept>
#endif

namespace fulmen {

class State;

namespace detail {

template <class T>
inline constexpr bool is_vector = false;
template <class T, class A>
inline constexpr bool is_vector<std::vector<T, A>> = true;

template <class T>
inline constexpr bool is_optional = false;
template <class T>
inline constexpr bool is_optional<std::optional<T>> = true;

// What a user calls the kind of a value in a checkpoint.
std::string kind_of(const c10::IValue& value);

template <class>
inline constexpr bool cannot_be_in_a_state = false;

}  // namespace detail

/// A dict from names (or integers, as Python's optimizers have) to values, in order of insertion:
///
///   State state("AdamW");
///   state.set("lr", lr).set("step", step).set("exp_avg", exp_avg);  // numbers, strings, tensors, States,
///   vectors checkpoint::write(path, state); const State back(checkpoint::read(path), "AdamW"); lr =
///   back.get<double>("lr");
///
/// Errors are std::runtime_error "state of AdamW: key 'lr' is a string, expected a number".
/// Like Python's dict it is a reference: a copy has the same contents, and tensors are not copied either.
class State {
 public:
  /// A name, or an integer.
  class Key {
   public:
    Key(std::string name);
    Key(std::string_view name) : Key(std::string(name)) {}
    Key(const char* name) : Key(std::string(name)) {}
    template <std::integral Int>
      requires(!std::same_as<Int, bool>)
    Key(Int index) : value_(static_cast<std::int64_t>(index)) {}

    const c10::IValue& value() const { return value_; }
    std::string text() const;

   private:
    c10::IValue value_;
  };

  /// An empty state; `owner` is whose it is, for messages.
  explicit State(std::string owner = "");

  /// A dict as a state. Error: the value is no dict.
  /// (A template, since whatever converts to an IValue, a string too, would come here.)
  template <std::same_as<c10::IValue> Value>
  explicit State(const Value& value, std::string owner = "") : State(std::move(owner)) {
    refer_to(value);
  }

  // All defaults; declared, so that not every source compiles LibTorch's dict.
  State(const State&);
  State(State&&) noexcept;
  State& operator=(const State&);
  State& operator=(State&&) noexcept;
  ~State();

  /// Puts a value under a key, in place of the one there. T: bool, integers, floating-point numbers, strings,
  /// at::Tensor, State, c10::IValue; std::vector and std::optional of these (a list; None for nothing).
  /// Error: std::runtime_error for an unsigned integer above INT64_MAX.
  template <class T>
  State& set(const Key& key, const T& value) {
    return put(key, pack(key, value));
  }

  /// The value under a key, as a T of those that set() takes. A number is given as double, an integer too; an
  /// integer only if it fits into T. A vector is given from a list or a tuple.
  /// Error: the key is missing, or its value is something else.
  template <class T>
  T get(const Key& key) const {
    return unpack<T>(value_of(key), key.text());
  }

  /// The same, with a value for when the key is missing (and an error still if it is there and something
  /// else).
  template <class T>
  T get_or(const Key& key, T otherwise) const {
    return contains(key) ? get<T>(key) : std::move(otherwise);
  }

  bool contains(const Key& key) const;
  bool erase(const Key& key);
  std::size_t size() const;
  bool empty() const { return size() == 0; }

  /// The keys in order; integers as text.
  std::vector<std::string> keys() const;

  /// Whose state it is, as messages have it.
  const std::string& owner() const { return owner_; }

  /// The same contents, called otherwise in messages.
  State named(std::string owner) const;

  /// The dict itself: what checkpoint::write takes and checkpoint::read gives.
  const c10::impl::GenericDict& dict() const { return dict_; }
  operator c10::IValue() const;

 private:
  State(c10::impl::GenericDict dict, std::string owner);

  static std::string key_text(const c10::IValue& key);
  std::string head() const;
  std::string known_keys() const;
  [[noreturn]] void fail(const std::string& key, const std::string& found, const char* expected) const;

  // Becomes a reference to the value's dict. Error: it is no dict.
  void refer_to(const c10::IValue& value);

  // set() and get() but for the value's type. The value is given packed.
  State& put(const Key& key, c10::IValue value);
  c10::IValue value_of(const Key& key) const;

  static c10::IValue text_of(std::string_view value);
  static c10::IValue list_of(std::vector<c10::IValue> items);

  // A value as what its name says. Error: it is something else; `key` is for the message.
  bool bool_of(const c10::IValue& value, const std::string& key) const;
  std::int64_t int_of(const c10::IValue& value, const std::string& key, std::int64_t least,
                      std::uint64_t most) const;
  double double_of(const c10::IValue& value, const std::string& key) const;
  std::string string_of(const c10::IValue& value, const std::string& key) const;
  at::Tensor tensor_of(const c10::IValue& value, const std::string& key) const;
  State state_of(const c10::IValue& value, const std::string& key) const;
  c10::ArrayRef<c10::IValue> items_of(const c10::IValue& value, const std::string& key) const;

  template <class T>
  c10::IValue pack(const Key& key, const T& value) const {
    if constexpr (std::is_convertible_v<const T&, std::string_view>) {
      return text_of(value);
    } else if constexpr (std::same_as<T, bool> || std::same_as<T, c10::IValue> ||
                         std::same_as<T, at::Tensor>) {
      return value;
    } else if constexpr (std::same_as<T, State>) {
      return static_cast<c10::IValue>(value);
    } else if constexpr (std::integral<T>) {
      if (!std::in_range<std::int64_t>(value))
        fail(key.text(), std::to_string(value), "an integer of 64 bits with a sign");
      return static_cast<std::int64_t>(value);
    } else if constexpr (std::floating_point<T>) {
      return static_cast<double>(value);
    } else if constexpr (detail::is_optional<T>) {
      return value.has_value() ? pack(key, *value) : c10::IValue();
    } else if constexpr (detail::is_vector<T>) {
      std::vector<c10::IValue> items;
      items.reserve(value.size());
      for (const typename T::value_type& item : value) items.push_back(pack(key, item));
      return list_of(std::move(items));
    } else {
      static_assert(
          detail::cannot_be_in_a_state<T>,
          "a State holds bools, numbers, strings, at::Tensor, State, c10::IValue, and std::vector and "
          "std::optional of them");
    }
  }

  template <class T>
  T unpack(const c10::IValue& value, const std::string& key) const {
    if constexpr (std::same_as<T, c10::IValue>) {
      return value;
    } else if constexpr (std::same_as<T, bool>) {
      return bool_of(value, key);
    } else if constexpr (std::integral<T>) {
      using Limits = std::numeric_limits<T>;
      return static_cast<T>(int_of(value, key, Limits::min(), static_cast<std::uint64_t>(Limits::max())));
    } else if constexpr (std::floating_point<T>) {
      // An integer straight to T: by way of double it would be rounded twice.
      return value.isInt() ? static_cast<T>(unpack<std::int64_t>(value, key))
                           : static_cast<T>(double_of(value, key));
    } else if constexpr (std::same_as<T, std::string>) {
      return string_of(value, key);
    } else if constexpr (std::same_as<T, at::Tensor>) {
      return tensor_of(value, key);
    } else if constexpr (std::same_as<T, State>) {
      return state_of(value, key);
    } else if constexpr (detail::is_optional<T>) {
      if (value.isNone()) return std::nullopt;
      return unpack<typename T::value_type>(value, key);
    } else if constexpr (detail::is_vector<T>) {
      T items;
      const c10::ArrayRef<c10::IValue> values = items_of(value, key);
      items.reserve(values.size());
      for (const c10::IValue& item : values) {
        items.push_back(
            unpack<typename T::value_type>(item, key + "[" + std::to_string(items.size()) + "]"));
      }
      return items;
    } else {
      static_assert(
          detail::cannot_be_in_a_state<T>,
          "a State holds bools, numbers, strings, at::Tensor, State, c10::IValue, and std::vector and "
          "std::optional of them");
    }
  }

  std::string owner_;
  c10::impl::GenericDict dict_;
};

#if FULMEN_BODIES
FULMEN_INLINE std::string detail::kind_of(const c10::IValue& value) {
  if (value.isNone()) return "None";
  if (value.isBool()) return "a bool";
  if (value.isInt()) return "an integer";
  if (value.isDouble()) return "a number";
  if (value.isString()) return "a string";
  if (value.isTensor()) return "a tensor";
  if (value.isGenericDict()) return "a dict";
  if (value.isList()) return "a list";
  if (value.isTuple()) return "a tuple";
  return "a " + value.tagKind();
}

FULMEN_INLINE State::Key::Key(std::string name) : value_(std::move(name)) {}

FULMEN_INLINE std::string State::Key::text() const {
  return value_.isString() ? value_.toStringRef() : std::to_string(value_.toInt());
}

FULMEN_INLINE State::State(std::string owner)
    : owner_(std::move(owner)), dict_(c10::AnyType::get(), c10::AnyType::get()) {}

FULMEN_INLINE State::State(c10::impl::GenericDict dict, std::string owner)
    : owner_(std::move(owner)), dict_(std::move(dict)) {}

FULMEN_INLINE State::State(const State&) = default;
FULMEN_INLINE State::State(State&&) noexcept = default;
FULMEN_INLINE State& State::operator=(const State&) = default;
FULMEN_INLINE State& State::operator=(State&&) noexcept = default;
FULMEN_INLINE State::~State() = default;

FULMEN_INLINE bool State::contains(const Key& key) const { return dict_.contains(key.value()); }
FULMEN_INLINE bool State::erase(const Key& key) { return dict_.erase(key.value()) > 0; }
FULMEN_INLINE std::size_t State::size() const { return dict_.size(); }

FULMEN_INLINE std::vector<std::string> State::keys() const {
  std::vector<std::string> names;
  names.reserve(size());
  for (const auto& entry : dict_) names.push_back(key_text(entry.key()));
  return names;
}

FULMEN_INLINE State State::named(std::string owner) const { return State(dict_, std::move(owner)); }

FULMEN_INLINE State::operator c10::IValue() const { return dict_; }

FULMEN_INLINE std::string State::key_text(const c10::IValue& key) {
  if (key.isString()) return key.toStringRef();
  return key.isInt() ? std::to_string(key.toInt()) : "<" + key.tagKind() + ">";
}

FULMEN_INLINE std::string State::head() const {
  return owner_.empty() ? "state: " : "state of " + owner_ + ": ";
}

FULMEN_INLINE std::string State::known_keys() const {
  if (empty()) return "it has no keys";
  std::string text = "it has";
  std::size_t count = 0;
  for (const auto& entry : dict_) {
    if (count == 8) return text + " and " + std::to_string(size() - count) + " more";
    text += (count++ == 0 ? " '" : ", '") + key_text(entry.key()) + "'";
  }
  return text;
}

FULMEN_INLINE void State::fail(const std::string& key, const std::string& found, const char* expected) const {
  throw std::runtime_error(head() + "key '" + key + "' is " + found + ", expected " + expected);
}

FULMEN_INLINE void State::refer_to(const c10::IValue& value) {
  if (!value.isGenericDict())
    throw std::runtime_error(head() + "it is " + detail::kind_of(value) + ", expected a dict");
  dict_ = value.toGenericDict();
}

FULMEN_INLINE State& State::put(const Key& key, c10::IValue value) {
  dict_.insert_or_assign(key.value(), std::move(value));
  return *this;
}

FULMEN_INLINE c10::IValue State::value_of(const Key& key) const {
  const auto found = dict_.find(key.value());
  if (found == dict_.end())
    throw std::runtime_error(head() + "key '" + key.text() + "' is missing; " + known_keys());
  return found->value();
}

FULMEN_INLINE c10::IValue State::text_of(std::string_view value) { return std::string(value); }

FULMEN_INLINE c10::IValue State::list_of(std::vector<c10::IValue> items) {
  c10::impl::GenericList list(c10::AnyType::get());
  list.reserve(items.size());
  for (c10::IValue& item : items) list.push_back(std::move(item));
  return list;
}

FULMEN_INLINE bool State::bool_of(const c10::IValue& value, const std::string& key) const {
  if (!value.isBool()) fail(key, detail::kind_of(value), "a bool");
  return value.toBool();
}

FULMEN_INLINE std::int64_t State::int_of(const c10::IValue& value, const std::string& key, std::int64_t least,
                                         std::uint64_t most) const {
  if (!value.isInt()) fail(key, detail::kind_of(value), "an integer");
  const std::int64_t number = value.toInt();
  if (number < least || std::cmp_greater(number, most)) {
    fail(key, std::to_string(number),
         ("an integer from " + std::to_string(least) + " to " + std::to_string(most)).c_str());
  }
  return number;
}

FULMEN_INLINE double State::double_of(const c10::IValue& value, const std::string& key) const {
  if (!value.isDouble()) fail(key, detail::kind_of(value), "a number");
  return value.toDouble();
}

FULMEN_INLINE std::string State::string_of(const c10::IValue& value, const std::string& key) const {
  if (!value.isString()) fail(key, detail::kind_of(value), "a string");
  return value.toStringRef();
}

FULMEN_INLINE at::Tensor State::tensor_of(const c10::IValue& value, const std::string& key) const {
  if (!value.isTensor()) fail(key, detail::kind_of(value), "a tensor");
  return value.toTensor();
}

FULMEN_INLINE State State::state_of(const c10::IValue& value, const std::string& key) const {
  if (!value.isGenericDict()) fail(key, detail::kind_of(value), "a dict");
  return State(value, owner_.empty() ? key : owner_ + "." + key);
}

FULMEN_INLINE c10::ArrayRef<c10::IValue> State::items_of(const c10::IValue& value,
                                                         const std::string& key) const {
  if (value.isList()) return value.toListRef();
  if (!value.isTuple()) fail(key, detail::kind_of(value), "a list");
  return value.toTupleRef().elements();
}
#endif

}  // namespace fulmen
