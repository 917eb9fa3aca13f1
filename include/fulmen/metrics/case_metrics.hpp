// Metrics that are functions: of one case (single) or of all cases of a run (group), with a preprocessing,
// and what the values of the cases come to. For MetricMonitor.
#pragma once

#include <fulmen/compiled.hpp>
#include <fulmen/checkpoint/state.hpp>
#include <fulmen/data/batch.hpp>
#include <fulmen/error.hpp>
#include <fulmen/none.hpp>

#include <ATen/core/Tensor.h>

#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#if FULMEN_BODIES
#include <fulmen/checkpoint/atomic_file.hpp>

#include <ATen/ops/cat.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/stack.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <sstream>
#include <stdexcept>
#include <system_error>
#endif

namespace fulmen {

/// A function and what it is called in the log.
template <class F>
struct Named {
  std::string name;
  F call;
};

/// `named("dice", dice)`: a metric for single_metrics and group_metrics, or an aggregate for aggregate_fn.
template <class F>
Named<F> named(std::string name, F call) {
  return {std::move(name), std::move(call)};
}

namespace detail {
template <class T>
inline constexpr bool is_named = false;
template <class F>
inline constexpr bool is_named<Named<F>> = true;
template <class T>
inline constexpr bool is_per_batch = false;
}  // namespace detail

/// Marks a single metric that takes a whole batch; see per_batch.
template <class F>
struct PerBatch {
  F call;
};

/// A single metric that does all cases of a batch at once: `named("error", per_batch(squared_errors))`, where
/// squared_errors(targets, predictions) gives a tensor with one value a case.
template <class F>
PerBatch<F> per_batch(F call) {
  return {std::move(call)};
}

namespace detail {
template <class F>
inline constexpr bool is_per_batch<PerBatch<F>> = true;
}

/// See single_metrics.
template <class Preprocess, class... F>
struct SingleMetrics {
  Preprocess preprocess;
  std::tuple<Named<F>...> metrics;
};
/// See group_metrics.
template <class Preprocess, class... F>
struct GroupMetrics {
  Preprocess preprocess;
  std::tuple<Named<F>...> metrics;
};

/// Metrics of one case each: `single_metrics(named("dice", dice), named("iou", iou))`, where
/// `dice(target, prediction)` gives a number or a tensor with one element. Logged is what the values of all
/// cases come to; see aggregate_fn.
template <class... F>
SingleMetrics<None, F...> single_metrics(Named<F>... metrics) {
  return {{}, {std::move(metrics)...}};
}
/// The same on what `preprocess(target, prediction)` returns: a std::pair or std::tuple of the metrics'
/// arguments.
template <class Preprocess, class... F>
  requires(!detail::is_named<Preprocess>)
SingleMetrics<Preprocess, F...> single_metrics(Preprocess preprocess, Named<F>... metrics) {
  return {std::move(preprocess), {std::move(metrics)...}};
}

/// Metrics of all cases of a run at once: `group_metrics(named("auc", auc))`, where `auc(targets,
/// predictions)` takes tensors whose first dimension are the cases.
template <class... F>
GroupMetrics<None, F...> group_metrics(Named<F>... metrics) {
  return {{}, {std::move(metrics)...}};
}
/// The same on what `preprocess(target, prediction)` returns for each case, stacked: a std::pair or
/// std::tuple of tensors or numbers, each of one shape for all cases.
template <class Preprocess, class... F>
  requires(!detail::is_named<Preprocess>)
GroupMetrics<Preprocess, F...> group_metrics(Preprocess preprocess, Named<F>... metrics) {
  return {std::move(preprocess), {std::move(metrics)...}};
}

/// The values of one single metric for all cases, in their order.
using CaseValues = std::span<const double>;

namespace detail {

/// Computes "mean" (of nothing: NaN), "min", "max", "median" or "std" (of the population, as NumPy's).
struct StockAggregate {
  std::string name;
  double operator()(CaseValues values) const;
};
/// @throws std::invalid_argument for any other name.
Named<StockAggregate> stock_aggregate(std::string name);

template <class A>
auto as_aggregate(A aggregate) {
  if constexpr (std::is_convertible_v<A, std::string>) {
    return stock_aggregate(std::move(aggregate));
  } else {
    constexpr bool fits = is_named<A> && requires(const A& a, CaseValues v) {
      { a.call(v) } -> std::convertible_to<double>;
    };
    static_assert(fits,
                  "fulmen: aggregate_fn takes \"min\", \"max\", \"median\", \"std\", or named(\"name\", fn) with "
                  "a fn(fulmen::CaseValues) -> double");
    return aggregate;
  }
}

}  // namespace detail

/// See aggregate_fn.
template <class... A>
struct Aggregates {
  std::tuple<A...> all;
};

/// What the values of single metrics come to besides the mean: `aggregate_fn("std", "median", named("worst",
/// fn))`. The mean is logged as val/<metric>, the others as val/<aggregate>/<metric>.
/// @throws std::invalid_argument for a name that is none of min, max, median and std.
template <class... A>
auto aggregate_fn(A... aggregates) {
  return Aggregates<decltype(detail::as_aggregate(std::move(aggregates)))...>{
      {detail::as_aggregate(std::move(aggregates))...}};
}

/// For which runs MetricMonitor writes tables of the single metrics, a row a case.
struct LogIndividualMetrics {
  bool val = true;
  bool test = true;
};
inline constexpr LogIndividualMetrics log_individual_metrics{};

/// The single metrics of the cases of one loader, as a logger's log_table(ctx, name, table) is given them.
struct CaseTable {
  std::vector<std::string> columns;          ///< names of the metrics
  std::vector<std::string> rows;             ///< <batch>_<place in it>, <batch> where all batches have one case
  std::vector<std::vector<double>> values;  ///< a vector a column
};

namespace detail {

// Cases ---------------------------------------------------------------------------------------------------

/// What can be cut into cases: tensors, several of them too.
template <class T>
inline constexpr bool can_have_cases = TensorLike<T>;
template <class... T>
inline constexpr bool can_have_cases<std::tuple<T...>> = (can_have_cases<std::remove_cvref_t<T>> && ...);
template <class A, class B>
inline constexpr bool can_have_cases<std::pair<A, B>> = can_have_cases<A> && can_have_cases<B>;
template <class T, std::size_t N>
inline constexpr bool can_have_cases<std::array<T, N>> = can_have_cases<T>;
template <class T>
inline constexpr bool can_have_cases<std::vector<T>> = can_have_cases<T>;

/// The i-th case of a batch: of a tensor its i-th part, of several in a tuple or vector the same of each.
template <class T>
T case_of(const T& batch, std::int64_t i) {
  if constexpr (TensorLike<T>) {
    return batch.select(0, i);
  } else if constexpr (SequenceLike<T>) {
    T out;
    for (const auto& member : batch) out.push_back(case_of(member, i));
    return out;
  } else {
    return std::apply([&](const auto&... member) { return T{case_of(member, i)...}; }, batch);
  }
}

/// Everything in it as tensors, one after another; numbers become tensors without dimensions.
at::Tensor as_tensor(double value);
at::Tensor as_tensor(std::int64_t value);
at::Tensor as_tensor(bool value);
template <class T>
void flatten(const T& value, std::vector<at::Tensor>& out) {
  if constexpr (TensorLike<T>) {
    out.push_back(value);
  } else if constexpr (std::same_as<T, bool>) {
    out.push_back(as_tensor(value));
  } else if constexpr (std::integral<T>) {
    out.push_back(as_tensor(static_cast<std::int64_t>(value)));
  } else if constexpr (std::floating_point<T>) {
    out.push_back(as_tensor(static_cast<double>(value)));
  } else if constexpr (SequenceLike<T>) {
    for (const auto& member : value) flatten(member, out);
  } else {
    std::apply([&](const auto&... member) { (flatten(member, out), ...); }, value);
  }
}

/// What a metric returned, as a number.
template <class T>
  requires(TensorLike<T> || std::convertible_to<T, double>)
double as_number(const T& value) {
  if constexpr (TensorLike<T>)
    return value.item().toDouble();
  else
    return static_cast<double>(value);
}

/// Cases in a batch. @throws std::runtime_error if prediction and targets have different numbers of them.
std::int64_t count_cases(const std::vector<at::Tensor>& targets, const std::vector<at::Tensor>& predictions);

/// The values and inputs gathered in one run, without knowing of the functions.
class GatheredCases {
 public:
  /// What belongs to one loader.
  struct Loader {
    std::vector<std::array<std::int64_t, 2>> cases;             // batch, place in it
    std::vector<std::vector<double>> values;                    // a vector a single metric
    std::vector<std::vector<std::vector<at::Tensor>>> groups;  // a set, an argument, a batch
  };

  GatheredCases(std::size_t singles, std::size_t groups) : singles_(singles), groups_(groups) {}

  /// Adds the cases of a batch. @return where their values go to
  Loader& add_batch(std::int64_t dataloader_idx, std::int64_t batch_idx, std::int64_t count);
  /// Adds a batch's arguments for a set of group metrics.
  void add_group(Loader& loader, std::size_t set, std::vector<at::Tensor> arguments);
  /// The same, each case for itself.
  /// @throws std::runtime_error if their shapes differ
  void add_group(Loader& loader, std::size_t set, const std::vector<std::vector<at::Tensor>>& cases);
  /// Adds values of a whole batch. @throws std::runtime_error if these are not `count`.
  void add_values(Loader& loader, std::size_t single, const at::Tensor& values, std::int64_t count,
                  const std::string& name);

  void clear() { loaders_.clear(); }
  /// By index; those that gave no batch are empty.
  const std::vector<Loader>& loaders() const { return loaders_; }
  /// What is behind names where several loaders gave batches: "/0", ...; else nothing.
  std::string postfix(std::size_t loader) const;
  /// The arguments of a set's metrics. @throws std::runtime_error if shapes differ between batches
  std::vector<at::Tensor> arguments(std::size_t loader, std::size_t set) const;

  State state_dict() const;
  void load_state_dict(const State& state);

 private:
  std::size_t singles_, groups_;
  std::vector<Loader> loaders_;
};

CaseTable case_table(const GatheredCases::Loader& loader, std::vector<std::string> names);
/// As pandas writes a DataFrame of them. @throws std::runtime_error naming the file
void write_case_table(const std::filesystem::path& path, const CaseTable& table);

/// @throws std::invalid_argument if a name occurs twice or is empty.
void check_metric_names(const std::vector<std::string>& names);
/// Names that are in both get "single/" and "group/" before them.
void tell_apart(std::vector<std::string>& singles, std::vector<std::string>& groups);

// Calling functions ---------------------------------------------------------------------------------------

template <class F, class Indices>
inline constexpr bool takes_tensors = false;
template <class F, std::size_t... I>
inline constexpr bool takes_tensors<F, std::index_sequence<I...>> = requires(const F& f, const at::Tensor& t) {
  as_number(f((static_cast<void>(I), t)...));
};

/// The metric of as many tensors as there are: a number known only now, of those that it takes.
/// @throws std::runtime_error if it takes another number of them.
template <class F>
double call_with_tensors(const F& metric, const std::vector<at::Tensor>& arguments, const std::string& name) {
  double out = 0;
  const auto with = [&]<std::size_t... I>(std::index_sequence<I...> indices) {
    if constexpr (takes_tensors<F, decltype(indices)>) {
      if (arguments.size() != sizeof...(I)) return false;
      out = as_number(metric(arguments[I]...));
      return true;
    } else {
      return false;
    }
  };
  const bool called = [&]<std::size_t... N>(std::index_sequence<N...>) {
    return (with(std::make_index_sequence<N + 1>{}) || ...);
  }
  (std::make_index_sequence<6>{});
  if (!called)
    fail("MetricMonitor: the group metric '{}' cannot be called with {} tensors", name, arguments.size());
  return out;
}

template <class F>
inline constexpr bool takes_some_tensors = []<std::size_t... N>(std::index_sequence<N...>) {
  return (takes_tensors<F, std::make_index_sequence<N + 1>> || ...);
}
(std::make_index_sequence<6>{});

/// What a set's metrics are called with for one case.
template <class Preprocess, class Target, class Prediction>
auto preprocessed(const Preprocess& preprocess, const Target& target, const Prediction& prediction) {
  if constexpr (is_none<Preprocess>) {
    return std::tuple<const Target&, const Prediction&>(target, prediction);
  } else {
    constexpr bool fits = requires {
      { preprocess(target, prediction) } -> TupleLike;
    };
    static_assert(fits,
                  "fulmen: a preprocessing of metrics must be callable as preprocess(target, prediction), of one "
                  "case, and return a std::pair or std::tuple of the metrics' arguments");
    if constexpr (fits) return preprocess(target, prediction);
    else return std::tuple<>{};
  }
}

template <class F, class Arguments, class Indices = std::make_index_sequence<std::tuple_size_v<Arguments>>>
inline constexpr bool takes_arguments = false;
template <class F, class Arguments, std::size_t... I>
inline constexpr bool takes_arguments<F, Arguments, std::index_sequence<I...>> =
    requires(const F& f, const Arguments& arguments) {
  as_number(f(std::get<I>(arguments)...));
};

template <class F, class Arguments>
double single_value(const F& metric, const Arguments& arguments) {
  constexpr bool fits = takes_arguments<F, Arguments>;
  static_assert(fits,
                "fulmen: a single metric must be callable as metric(target, prediction), of one case, or with what "
                "its preprocessing returns, and give a number or a tensor with one element");
  if constexpr (fits)
    return as_number(std::apply(metric, arguments));
  else
    return 0;
}

}  // namespace detail

#if FULMEN_BODIES
namespace detail {

FULMEN_INLINE at::Tensor as_tensor(double value) { return at::scalar_tensor(value, at::kDouble); }
FULMEN_INLINE at::Tensor as_tensor(std::int64_t value) { return at::scalar_tensor(value, at::kLong); }
FULMEN_INLINE at::Tensor as_tensor(bool value) { return at::scalar_tensor(value, at::kBool); }

FULMEN_INLINE double StockAggregate::operator()(CaseValues values) const {
  if (values.empty()) return std::numeric_limits<double>::quiet_NaN();
  const auto count = static_cast<double>(values.size());
  const bool nan = std::any_of(values.begin(), values.end(), [](double v) { return std::isnan(v); });
  if (nan) return std::numeric_limits<double>::quiet_NaN();  // comparisons below would depend on its place
  if (name == "min") return *std::min_element(values.begin(), values.end());
  if (name == "max") return *std::max_element(values.begin(), values.end());
  if (name == "median") {
    std::vector<double> sorted(values.begin(), values.end());
    const auto middle = sorted.begin() + static_cast<std::ptrdiff_t>(sorted.size() / 2);
    std::nth_element(sorted.begin(), middle, sorted.end());
    return sorted.size() % 2 ? *middle : (*std::max_element(sorted.begin(), middle) + *middle) / 2;
  }
  const double mean = std::accumulate(values.begin(), values.end(), 0.0) / count;
  if (name == "mean") return mean;
  double squares = 0;
  for (const double value : values) squares += (value - mean) * (value - mean);
  return std::sqrt(squares / count);
}

FULMEN_INLINE Named<StockAggregate> stock_aggregate(std::string name) {
  if (name != "min" && name != "max" && name != "median" && name != "std") {
    fail<std::invalid_argument>("aggregate_fn: '{}' is unknown, expected max, median, min, std, or a function by "
                                "named(\"{}\", fn)",
                                name, name);
  }
  return {name, {name}};
}

FULMEN_INLINE std::int64_t count_cases(const std::vector<at::Tensor>& targets,
                                       const std::vector<at::Tensor>& predictions) {
  std::int64_t count = -1;
  for (const auto* all : {&predictions, &targets}) {
    for (const at::Tensor& t : *all) {
      const char* what = all == &targets ? "targets" : "prediction";
      if (!t.defined() || t.dim() == 0) {
        fail("MetricMonitor: the {} of a batch {}, expected a tensor whose first dimension are the cases", what,
             t.defined() ? "has no dimensions" : "is undefined");
      }
      if (count >= 0 && t.size(0) != count)
        fail("MetricMonitor: the {} has {} cases, expected {} as the prediction", what, t.size(0), count);
      count = t.size(0);
    }
  }
  return std::max<std::int64_t>(count, 0);
}

FULMEN_INLINE GatheredCases::Loader& GatheredCases::add_batch(std::int64_t dataloader_idx, std::int64_t batch_idx,
                                                              std::int64_t count) {
  const auto index = static_cast<std::size_t>(dataloader_idx);
  if (loaders_.size() <= index) loaders_.resize(index + 1);
  Loader& loader = loaders_[index];
  loader.values.resize(singles_), loader.groups.resize(groups_);
  for (std::int64_t i = 0; i < count; ++i) loader.cases.push_back({batch_idx, i});
  return loader;
}

FULMEN_INLINE void GatheredCases::add_group(Loader& loader, std::size_t set, std::vector<at::Tensor> arguments) {
  auto& all = loader.groups[set];
  if (all.empty()) all.resize(arguments.size());
  if (all.size() != arguments.size())
    fail("MetricMonitor: group metrics had {} arguments before and have {} now", all.size(), arguments.size());
  for (std::size_t i = 0; i < all.size(); ++i) all[i].push_back(std::move(arguments[i]));
}

inline std::string shape_of(const at::Tensor& t) {
  std::ostringstream out;
  out << t.sizes();
  return out.str();
}

FULMEN_INLINE void GatheredCases::add_group(Loader& loader, std::size_t set,
                                            const std::vector<std::vector<at::Tensor>>& cases) {
  if (cases.empty()) return;
  std::vector<at::Tensor> arguments;
  for (std::size_t i = 0; i < cases[0].size(); ++i) {
    std::vector<at::Tensor> one;
    for (const std::vector<at::Tensor>& each : cases) {
      one.push_back(each[i].detach().cpu());
      if (!one.back().sizes().equals(one[0].sizes())) {
        fail("MetricMonitor: cases of a group metric have the shapes {} and {}, expected one shape for all: "
             "let a preprocessing make it",
             shape_of(one[0]), shape_of(one.back()));
      }
    }
    arguments.push_back(at::stack(one));
  }
  add_group(loader, set, std::move(arguments));
}

FULMEN_INLINE void GatheredCases::add_values(Loader& loader, std::size_t single, const at::Tensor& values,
                                             std::int64_t count, const std::string& name) {
  if (!values.defined() || values.dim() != 1 || values.size(0) != count) {
    fail("MetricMonitor: per_batch metric '{}' gave {}, expected a tensor with {} values", name,
         values.defined() ? "a tensor of shape " + shape_of(values) : "an undefined tensor", count);
  }
  const at::Tensor numbers = values.detach().to(at::kCPU, at::kDouble).contiguous();
  const double* first = numbers.const_data_ptr<double>();
  loader.values[single].insert(loader.values[single].end(), first, first + count);
}

FULMEN_INLINE std::string GatheredCases::postfix(std::size_t loader) const {
  const auto filled =
      std::count_if(loaders_.begin(), loaders_.end(), [](const Loader& one) { return !one.cases.empty(); });
  return filled > 1 ? "/" + std::to_string(loader) : "";
}

FULMEN_INLINE std::vector<at::Tensor> GatheredCases::arguments(std::size_t loader, std::size_t set) const {
  std::vector<at::Tensor> out;
  for (const std::vector<at::Tensor>& batches : loaders_[loader].groups[set]) {
    for (const at::Tensor& batch : batches) {
      if (!batch.sizes().slice(1).equals(batches[0].sizes().slice(1))) {
        fail("MetricMonitor: cases of a group metric have the shapes {} and {}, expected one shape for all: "
             "let a preprocessing make it",
             shape_of(batches[0][0]), shape_of(batch[0]));
      }
    }
    out.push_back(at::cat(batches));
  }
  return out;
}

FULMEN_INLINE State GatheredCases::state_dict() const {
  std::vector<State> loaders;
  for (const Loader& loader : loaders_) {
    std::vector<std::int64_t> cases;
    for (const auto& [batch, place] : loader.cases) cases.push_back(batch), cases.push_back(place);
    loaders.push_back(State().set("cases", cases).set("values", loader.values).set("groups", loader.groups));
  }
  return State("MetricMonitor").set("loaders", loaders);
}

FULMEN_INLINE void GatheredCases::load_state_dict(const State& state) {
  std::vector<Loader> loaders;
  for (const State& one : state.get<std::vector<State>>("loaders")) {
    Loader loader;
    const auto cases = one.get<std::vector<std::int64_t>>("cases");
    for (std::size_t i = 0; i + 1 < cases.size(); i += 2) loader.cases.push_back({cases[i], cases[i + 1]});
    loader.values = one.get<std::vector<std::vector<double>>>("values");
    loader.groups = one.get<std::vector<std::vector<std::vector<at::Tensor>>>>("groups");
    const bool fits = loader.cases.empty() || (loader.values.size() == singles_ && loader.groups.size() == groups_);
    if (!fits) {
      fail("state of MetricMonitor has {} single metrics and {} sets of group metrics, expected {} and {}",
           loader.values.size(), loader.groups.size(), singles_, groups_);
    }
    loaders.push_back(std::move(loader));
  }
  loaders_ = std::move(loaders);
}

FULMEN_INLINE CaseTable case_table(const GatheredCases::Loader& loader, std::vector<std::string> names) {
  CaseTable out{std::move(names), {}, loader.values};
  const bool one_each =
      std::all_of(loader.cases.begin(), loader.cases.end(), [](const auto& one) { return one[1] == 0; });
  for (const auto& [batch, place] : loader.cases)
    out.rows.push_back(one_each ? std::to_string(batch) : fmt::format("{}_{}", batch, place));
  return out;
}

FULMEN_INLINE void write_case_table(const std::filesystem::path& path, const CaseTable& table) {
  std::error_code error;
  std::filesystem::create_directories(path.parent_path(), error);
  std::string text;
  for (const std::string& column : table.columns) {
    const bool quoted = column.find_first_of(",\"\n\r") != std::string::npos;
    text += quoted ? ",\"" : ",";
    for (const char c : column) text += c == '"' ? "\"\"" : std::string(1, c);
    if (quoted) text += '"';
  }
  text += '\n';
  for (std::size_t row = 0; row < table.rows.size(); ++row) {
    text += table.rows[row];
    for (const std::vector<double>& column : table.values) {
      const double value = column[row];
      text += ',';
      if (std::isnan(value)) continue;
      const std::string number = fmt::format("{}", value);
      text += number;
      if (number.find_first_not_of("-0123456789") == std::string::npos) text += ".0";
    }
    text += '\n';
  }
  checkpoint::AtomicFile file(path, "table of metrics");
  file.append(text.data(), text.size());
  file.commit();
}

FULMEN_INLINE void check_metric_names(const std::vector<std::string>& names) {
  for (std::size_t i = 0; i < names.size(); ++i) {
    if (names[i].empty()) fail<std::invalid_argument>("MetricMonitor: a metric's name is empty");
    if (std::count(names.begin(), names.end(), names[i]) > 1)
      fail<std::invalid_argument>("MetricMonitor: several metrics are called '{}'", names[i]);
  }
}

FULMEN_INLINE void tell_apart(std::vector<std::string>& singles, std::vector<std::string>& groups) {
  for (std::string& single : singles) {
    const auto same = std::find(groups.begin(), groups.end(), single);
    if (same == groups.end()) continue;
    *same = "group/" + single;
    single = "single/" + single;
  }
}

}  // namespace detail
#endif

}  // namespace fulmen
