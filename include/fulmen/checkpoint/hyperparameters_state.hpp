// Hyper-parameters in checkpoints: a struct that BOOST_HANA_ADAPT_STRUCT describes, as a State and back.
#pragma once

#include <fulmen/checkpoint/state.hpp>
#include <fulmen/compiled.hpp>
#include <fulmen/data/batch.hpp>
#include <fulmen/error.hpp>

#include <boost/hana/accessors.hpp>
#include <boost/hana/core/to.hpp>
#include <boost/hana/first.hpp>
#include <boost/hana/second.hpp>
#include <boost/hana/string.hpp>
#include <boost/hana/unpack.hpp>

#include <array>
#include <concepts>
#include <cstddef>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace fulmen {

namespace detail {

/// Has a member `hparams` whose struct is adapted: what Lightning calls self.hparams.
template <class M>
concept HasHyperparameters = requires(M& module) {
  requires Adapted<decltype(module.hparams)>;
};

/// Calls visit(name, member) for each member of an adapted struct, in order.
template <class H, class Visit>
void for_each_hyperparameter(H& hparams, Visit&& visit) {
  boost::hana::unpack(boost::hana::accessors<std::remove_const_t<H>>(), [&](auto... field) {
    (visit(boost::hana::to<const char*>(boost::hana::first(field)), boost::hana::second(field)(hparams)),
     ...);
  });
}

/// As what a hyper-parameter stands in a State, and the way there and back.
template <class T>
struct Stated {
  static_assert(std::is_arithmetic_v<T> || std::same_as<T, std::string>,
                "fulmen: hyper-parameters are bools, numbers, strings, enums, std::optional, std::vector and "
                "std::array of "
                "them, and adapted structs of such members");
  using type = T;
  static const T& out(const T& value) { return value; }
  static T in(T value, const State&, const std::string&) { return value; }
};

template <class T>
  requires std::is_enum_v<T>
struct Stated<T> {
  using type = std::underlying_type_t<T>;
  static type out(T value) { return static_cast<type>(value); }
  static T in(type value, const State&, const std::string&) { return static_cast<T>(value); }
};

template <class T>
struct Stated<std::optional<T>> {
  using type = std::optional<typename Stated<T>::type>;
  static type out(const std::optional<T>& value) {
    return value ? type(Stated<T>::out(*value)) : std::nullopt;
  }
  static std::optional<T> in(type value, const State& state, const std::string& key) {
    if (!value) return std::nullopt;
    return Stated<T>::in(std::move(*value), state, key);
  }
};

template <class T>
struct Stated<std::vector<T>> {
  using type = std::vector<typename Stated<T>::type>;
  static type out(const std::vector<T>& values) {
    type all;
    for (const T& value : values) all.push_back(Stated<T>::out(value));
    return all;
  }
  static std::vector<T> in(const type& values, const State& state, const std::string& key) {
    std::vector<T> all;
    for (typename type::value_type value : values) all.push_back(Stated<T>::in(std::move(value), state, key));
    return all;
  }
};

[[noreturn, gnu::cold]] void fail_hyperparameter_count(const State& state, const std::string& key,
                                                       std::size_t found, std::size_t expected);

template <class T, std::size_t N>
struct Stated<std::array<T, N>> {
  using type = std::vector<typename Stated<T>::type>;
  static type out(const std::array<T, N>& values) {
    type all;
    for (const T& value : values) all.push_back(Stated<T>::out(value));
    return all;
  }
  static std::array<T, N> in(const type& values, const State& state, const std::string& key) {
    if (values.size() != N) fail_hyperparameter_count(state, key, values.size(), N);
    std::array<T, N> all{};
    for (std::size_t i = 0; i < N; ++i) all[i] = Stated<T>::in(values[i], state, key);
    return all;
  }
};

[[noreturn, gnu::cold]] void fail_unknown_hyperparameter(const State& state, const std::string& found,
                                                         const std::vector<std::string>& known);

template <Adapted H>
struct Stated<H> {
  using type = State;
  static State out(const H& hparams) {
    State state("hyper-parameters");
    for_each_hyperparameter(hparams, [&]<class T>(const char* name, const T& value) {
      state.set(name, typename Stated<T>::type(Stated<T>::out(value)));
    });
    return state;
  }
  static H in(const State& state, const State&, const std::string&) {
    H hparams{};
    std::vector<std::string> known;
    for_each_hyperparameter(hparams, [&]<class T>(const char* name, T& value) {
      known.emplace_back(name);
      if (!state.contains(name)) return;
      value = Stated<T>::in(state.get<typename Stated<T>::type>(name), state, known.back());
    });
    for (const std::string& key : state.keys()) {
      bool found = false;
      for (const std::string& name : known) found = found || name == key;
      if (!found) fail_unknown_hyperparameter(state, key, known);
    }
    return hparams;
  }
};

}  // namespace detail

/// The members of an adapted struct by name, as Lightning's checkpoints have them under `hyper_parameters`:
/// bools, numbers, strings; enums as their number; None for an empty std::optional; lists of std::vector and
/// std::array; dicts of adapted structs.
///
///   struct Hparams { double lr = 1e-3; std::vector<int> widths{64, 64}; };
///   BOOST_HANA_ADAPT_STRUCT(Hparams, lr, widths);
template <detail::Adapted H>
State hyperparameters_state(const H& hparams) {
  return detail::Stated<H>::out(hparams);
}

/// The struct of which hyperparameters_state(), or Lightning, made that State. Members that it lacks keep the
/// value that the struct gives them. Errors: std::runtime_error that names the key and lists those there are
/// for one that the struct has not; that names the key for a value of another kind, out of range, or of
/// another length.
template <detail::Adapted H>
H hyperparameters_from(const State& state) {
  const State named = state.named("hyper-parameters");
  return detail::Stated<H>::in(named, named, "");
}

#if FULMEN_BODIES
FULMEN_INLINE void detail::fail_hyperparameter_count(const State& state, const std::string& key,
                                                     std::size_t found, std::size_t expected) {
  fail("state of {}: key '{}' is a list of {}, expected {}", state.owner(), key, found, expected);
}

FULMEN_INLINE void detail::fail_unknown_hyperparameter(const State& state, const std::string& found,
                                                       const std::vector<std::string>& known) {
  std::string names;
  for (const std::string& name : known) names += (names.empty() ? "'" : ", '") + name + "'";
  fail("state of {}: key '{}' is unknown, expected one of {}", state.owner(), found, names);
}
#endif

}  // namespace fulmen
