// Weighted sums of criteria: `CrossEntropy{} + 0.5 * L1{}`. A Trainer's default steps log each part under its
// name.
#pragma once

#include <fulmen/criteria/call.hpp>
#include <fulmen/data/batch.hpp>
#include <fulmen/fixed_string.hpp>

#include <ATen/core/Tensor.h>

#include <array>
#include <cstddef>
#include <initializer_list>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>

namespace fulmen {

namespace detail {

/// A part that is called with all there is.
struct Everything {
  template <class Criterion, class Output, class... Targets>
  static constexpr bool fits = criterion_takes<Criterion, Output, Targets...>;

  template <class Criterion, class Output, class... Targets>
  static at::Tensor call(Criterion& criterion, const Output& output, Targets&... targets) {
    return call_criterion(criterion, output, targets...);
  }
};

/// A part that is called with one of forward's results and one of the targets.
template <std::size_t OutputIndex, std::size_t TargetIndex>
struct Chosen {
  template <class Output>
  using Members = decltype(members(std::declval<const Output&>()));
  template <class Criterion, class Output, class... Targets>
  static constexpr bool fits = [] {
    if constexpr (OutputIndex < std::tuple_size_v<Members<Output>> && TargetIndex < sizeof...(Targets)) {
      return criterion_takes<
          Criterion, std::remove_cvref_t<std::tuple_element_t<OutputIndex, Members<Output>>>,
          std::remove_reference_t<std::tuple_element_t<TargetIndex, std::tuple<Targets&...>>>>;
    } else {
      return false;
    }
  }();

  template <class Criterion, class Output, class... Targets>
  static at::Tensor call(Criterion& criterion, const Output& output, Targets&... targets) {
    return call_criterion(criterion, std::get<OutputIndex>(members(output)),
                          std::get<TargetIndex>(std::tie(targets...)));
  }
};

consteval bool all_different(std::initializer_list<std::string_view> names) {
  for (auto i = names.begin(); i != names.end(); ++i) {
    for (auto j = names.begin(); j != i; ++j) {
      if (*i == *j) return false;
    }
  }
  return true;
}

}  // namespace detail

/// One term of a sum.
template <FixedString Name, class C, class Arguments = detail::Everything>
struct CriterionPart {
  using Criterion = C;
  static constexpr FixedString name = Name;

  [[no_unique_address]] C criterion;
  double weight = 1;

  template <class Output, class... Targets>
  static constexpr bool takes = Arguments::template fits<C, Output, Targets...>;
  template <class Output, class... Targets>
  at::Tensor operator()(const Output& output, Targets&... targets) {
    return Arguments::call(criterion, output, targets...);
  }
};

/// What a sum comes to: the loss, and the value of each part before it is weighted.
template <std::size_t N>
struct CriterionValues {
  at::Tensor loss;
  std::array<at::Tensor, N> parts;
};

/// A weighted sum of criteria, itself a criterion: sum(output, targets...) -> loss. Made by
/// part<"name">(criterion), by `+` and by `weight * …`; a criterion that has a name (all of fulmen's do)
/// needs no part. In a Trainer's default steps the loss is logged as train/loss, val/loss, test/loss, and
/// each part, before it is weighted, as train/<name> and so on.
template <class... Parts>
struct CriterionSum {
  static_assert(
      detail::all_different({Parts::name.view()...}),
      "fulmen: two parts of a sum of criteria have one name: give one another, part<\"name\">(criterion)");

  std::tuple<Parts...> parts;  ///< their `weight`s may change during training

  template <class Output, class... Targets>
  static constexpr bool takes = (Parts::template takes<Output, Targets...> && ...);

  /// The weighted sum, of the shape of its parts (a scalar, unless their reduction is none).
  template <class Output, class... Targets>
    requires(takes<Output, const Targets...>)
  at::Tensor operator()(const Output& output, const Targets&... targets) {
    return values(output, targets...).loss;
  }

  /// The same, with the value of each part.
  template <class Output, class... Targets>
    requires(takes<Output, const Targets...>)
  CriterionValues<sizeof...(Parts)> values(const Output& output, const Targets&... targets) {
    return std::apply(
        [&](Parts&... part) {
          CriterionValues<sizeof...(Parts)> found{{}, {part(output, targets...)...}};
          std::size_t i = 0;
          (add(found.loss, found.parts[i++], part.weight), ...);
          return found;
        },
        parts);
  }

  /// Calls f(part, value) for each part.
  template <class F>
  void for_each(const CriterionValues<sizeof...(Parts)>& values, F&& f) const {
    std::size_t i = 0;
    std::apply([&](const Parts&... part) { (f(part, values.parts[i++]), ...); }, parts);
  }

  /// For a model with several outputs: forward's result `Output` (an index) and target `Target` are all that
  /// is given to this part, `part<"box">(SmoothL1{}).of<1>() + part<"class">(CrossEntropy{}).of<0>()`.
  template <std::size_t Output, std::size_t Target = Output>
    requires(sizeof...(Parts) == 1)
  auto of() const {
    return []<FixedString Name, class C, class A>(const CriterionPart<Name, C, A>& one) {
      using Part = CriterionPart<Name, C, detail::Chosen<Output, Target>>;
      return CriterionSum<Part>{{Part{one.criterion, one.weight}}};
    }(std::get<0>(parts));
  }

 private:
  static void add(at::Tensor& sum, const at::Tensor& value, double weight) {
    if (sum.defined()) sum = sum.add(value, weight);
    else sum = weight == 1 ? value : value.mul(weight);
  }
};

/// Gives a criterion, any callable, the name under which it is logged: `part<"dice">([](auto& y, auto& t) {
/// ... })`.
template <FixedString Name, class C>
CriterionSum<CriterionPart<Name, C>> part(C criterion) {
  static_assert(
      Name.view() != "loss",
      "fulmen: a part of a sum of criteria must not be called \"loss\": the sum is logged under that name");
  return {{CriterionPart<Name, C>{std::move(criterion), 1}}};
}

namespace detail {

template <class T>
inline constexpr bool is_criterion_sum = false;
template <class... Parts>
inline constexpr bool is_criterion_sum<CriterionSum<Parts...>> = true;

template <class T>
concept NamedCriterion = requires {
  T::criterion_name.view();
};
template <class T>
concept Summand = is_criterion_sum<T> || NamedCriterion<T>;

template <Summand T>
auto as_sum(T summand) {
  if constexpr (is_criterion_sum<T>) return summand;
  else return fulmen::part<T::criterion_name>(std::move(summand));
}

}  // namespace detail

/// `CrossEntropy{} + part<"dice">(dice)`.
template <detail::Summand A, detail::Summand B>
auto operator+(A a, B b) {
  return []<class... L, class... R>(CriterionSum<L...> left, CriterionSum<R...> right) {
    return CriterionSum<L..., R...>{std::tuple_cat(std::move(left.parts), std::move(right.parts))};
  }(detail::as_sum(std::move(a)), detail::as_sum(std::move(b)));
}

/// `0.5 * L1{}`; of a sum, each part.
template <detail::Summand T>
auto operator*(double weight, T summand) {
  auto sum = detail::as_sum(std::move(summand));
  std::apply([&](auto&... part) { ((part.weight *= weight), ...); }, sum.parts);
  return sum;
}

}  // namespace fulmen
