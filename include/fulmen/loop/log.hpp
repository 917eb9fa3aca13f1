// What ctx.log writes to: values by name, kept where they are and reduced when somebody reads them.
#pragma once

#include <fulmen/error.hpp>
#include <fulmen/loop/stage.hpp>

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <concepts>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#if FULMEN_BODIES
#include <fulmen/checkpoint/state.hpp>

#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>
#endif

namespace fulmen {

class State;

namespace detail {
/// FNV-1a, 64 bits.
constexpr std::uint64_t hash_name(std::string_view text) {
  std::uint64_t hash = 0xcbf29ce484222325u;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return hash;
}
}  // namespace detail

/// The name of a logged value. A literal is hashed at compile time; a name made at run time is asked for explicitly:
/// `ctx.log(fulmen::runtime_name(s), value)`, so that a hash in the hot loop is never an accident.
class LogName {
 public:
  template <std::size_t N>
  consteval LogName(const char (&literal)[N]) : text_(literal, N - 1), hash_(detail::hash_name(text_)) {}

  constexpr std::string_view text() const { return text_; }
  constexpr std::uint64_t hash() const { return hash_; }

 private:
  constexpr explicit LogName(std::string_view text) : text_(text), hash_(detail::hash_name(text)) {}
  friend constexpr LogName runtime_name(std::string_view text);

  std::string_view text_;
  std::uint64_t hash_;
};

constexpr LogName runtime_name(std::string_view text) { return LogName(text); }

namespace detail {
/// Text that is not a literal.
template <class T>
concept RuntimeText = std::convertible_to<T, std::string_view> && !std::is_array_v<std::remove_reference_t<T>>;

/// An object that has a value for an epoch, as MetricWithState has.
template <class T>
concept HasEpochValue = requires(T& metric) {
  { metric.compute() } -> std::convertible_to<double>;
  metric.reset();
};
}  // namespace detail

/// How the values of an epoch become one.
enum class Reduce : std::uint8_t { mean, sum, min, max };

/// Lightning's arguments of `log`. Unset on_step/on_epoch follow the hook: a training batch logs on_step, all else on_epoch.
struct LogOptions {
  bool prog_bar = false;
  bool logger = true;
  std::optional<bool> on_step{};
  std::optional<bool> on_epoch{};
  Reduce reduce = Reduce::mean;
  std::int64_t batch_size = 0;  ///< the weight of this value in the epoch's mean; 0: the batch's own size
  bool add_dataloader_idx = true;  ///< with several loaders, name/dataloader_idx_N; false: one value for all of them
};

/// One of the values of log_dict.
struct LogEntry {
  LogName name;
  at::Tensor tensor{};
  double number = 0;

  LogEntry(LogName n, double value) : name(n), number(value) {}
  LogEntry(LogName n, at::Tensor value) : name(n), tensor(std::move(value)) {}
};

/// Where a value is logged: the defaults of on_step and on_epoch, its weight and its loader follow from it.
struct LogPlace {
  Phase phase;
  bool by_step;                  ///< in a training batch
  std::int64_t weight = 1;       ///< samples, used where the options give none
  std::int64_t dataloader = -1;  ///< the index among several loaders of a stage; -1: there is one
};

/// A value that can be read: what loggers, progress bars and callbacks get to see.
struct Metric {
  std::string name;  // its own, so that results outlive the run that gave them
  double value;

  Metric(std::string_view n, double v) : name(n), value(v) {}
};

/// Values in the order of logging, found by name: `trainer.test(loader).at("test/accuracy")`.
class Metrics : public std::vector<Metric> {
 public:
  using std::vector<Metric>::vector;

  std::optional<double> find(std::string_view name) const;
  /// @throws std::out_of_range naming the values there are.
  double at(std::string_view name) const;
  /// All names in a line, for messages.
  std::string names() const;
};

namespace detail {

/// The value of a one-element tensor of whatever type and device.
double read_any_scalar(const at::Tensor& tensor);

/// Reads a one-element tensor. On the CPU that is a load; elsewhere it waits for the device.
inline double read_scalar(const at::Tensor& tensor) {
  if (tensor.is_cpu()) {
    if (tensor.scalar_type() == at::kFloat) return static_cast<double>(*tensor.const_data_ptr<float>());
    if (tensor.scalar_type() == at::kDouble) return *tensor.const_data_ptr<double>();
  }
  return read_any_scalar(tensor);
}

/// Values that are still on a device, with their weights. Folded there, so that memory stays bounded in a long epoch
/// and the host waits for the device only when the value is read.
class DeviceValues {
 public:
  void add(const at::Tensor& value, double weight, Reduce reduce);
  bool empty() const { return values_.empty(); }
  at::Tensor last() const { return values_.back(); }
  void clear() { values_.clear(), weights_.clear(); }
  /// The sum of value × weight for the mean, else the sum, minimum or maximum. Waits for the device.
  double read(Reduce reduce);

 private:
  void fold(Reduce reduce);

  std::vector<at::Tensor> values_;
  std::vector<double> weights_;
};

}  // namespace detail

/// All logged values of a Trainer. A slot is found by the hash of its name and the phase that logs it.
class MetricStore {
 public:
  void log(LogName name, double value, const LogOptions& options, const LogPlace& place) {
    Slot& slot = slot_for(name, options, place);
    slot.last = value;
    slot.step_time = clock_;
    if (slot.on_epoch) accumulate(slot, value, weight_of(options, place.weight));
    slot.fresh_step = slot.fresh_epoch = true;
    slot.last_on_device = false;
  }

  /// @throws std::invalid_argument if the tensor does not have exactly one element.
  void log(LogName name, const at::Tensor& value, const LogOptions& options, const LogPlace& place) {
    if (!value.defined() || value.numel() != 1) refuse(name, value);
    if (value.is_cpu()) return log(name, detail::read_scalar(value), options, place);
    log_deferred(name, value, options, place);
  }

  /// The path of a tensor that lives on a device: nothing is read until somebody asks.
  void log_deferred(LogName name, const at::Tensor& value, const LogOptions& options, const LogPlace& place);

  /// A metric object: computed when the epoch ends, and reset after the hooks at its end. Until then the object must live.
  template <detail::HasEpochValue M>
  void log_object(LogName name, M& metric, const LogOptions& options, const LogPlace& place) {
    log_object(
        name, &metric, [](void* object) { return static_cast<double>(static_cast<M*>(object)->compute()); },
        [](void* object) { static_cast<M*>(object)->reset(); }, options, place);
  }

  /// Forgets what a phase has accumulated. The values of its last run can still be found by name.
  void begin_epoch(Phase phase);

  /// Drops a phase's slots altogether: what the sanity check logged is nobody's business afterwards.
  void forget(Phase phase);

  /// The values that batches logged on_step, for the loggers. One that was not logged by the last batch is repeated until
  /// the epoch ends, as Lightning does.
  /// @param dataloader of which loader among several of the phase; see LogPlace
  Metrics step_metrics(Phase phase, std::int64_t dataloader = -1);

  /// Reduces what a phase logged on_epoch since the last call, makes it readable by name, and returns what goes to the
  /// loggers.
  /// @param last no more hooks of the epoch's end follow: metric objects are reset
  Metrics end_epoch(Phase phase, bool last = true);

  /// Values marked prog_bar: the running one of a training batch, the finished one of anything else.
  Metrics progress_bar_metrics();
  /// The same for one phase; of an epoch that still runs, the value so far.
  Metrics progress_bar_metrics(Phase phase);

  /// What callbacks monitor, as Lightning has it: of a value logged both ways name_step, name_epoch and the newer of the
  /// two as name. An evaluation's values are here once it has ended, its steps' values never.
  Metrics callback_metrics();

  /// What goes to the loggers, the last value of each name.
  Metrics logged_metrics();

  /// The current value of a name (`loss`, or `loss_step`/`loss_epoch` where it was logged both ways). Where training and
  /// an evaluation use one name, the newer.
  std::optional<double> find(std::string_view name);

  /// What a phase's last run came to, in the order of logging.
  Metrics results(Phase phase) const;

  /// All values, with what a running epoch has accumulated. Not the metric objects: they are saved where they live, and are
  /// known again when they are next logged. Waits for the device.
  State state_dict();
  void load_state_dict(const State& state);

 private:
  struct Slot {
    std::uint64_t key;
    std::string name;
    std::size_t name_size;   // of the name as it was logged, without the loader's index
    std::string names[2];  // name_step, name_epoch; empty where there is no fork
    std::int64_t dataloader;
    Phase phase;
    Reduce reduce;
    bool on_step, on_epoch, prog_bar, logger;
    bool fresh_step = false;  // logged in this epoch
    bool fresh_epoch = false, has_epoch_value = false, last_on_device = false;
    bool shared = false;      // another phase has a slot of this name
    std::uint64_t step_time = 0, epoch_time = 0;
    double last = std::numeric_limits<double>::quiet_NaN(), epoch_value = last;
    double accumulated = 0, weight = 0;
    at::Tensor last_tensor;
    detail::DeviceValues device;
    void* object = nullptr;  // a metric logged as such, until the epoch ends
    double (*compute)(void*) = nullptr;
    void (*reset_object)(void*) = nullptr;

    /// Sets the names of a value called `base`.
    void set_name(std::string_view base);
    std::string_view step_name() const { return on_epoch ? names[0] : name; }
    std::string_view epoch_name() const { return on_step ? names[1] : name; }
    bool forks() const { return on_step && on_epoch; }
    bool has_step() const { return on_step && step_time > 0; }
    bool step_is_newer() const { return !has_epoch_value || step_time > epoch_time; }
    double read_last();
    double read_epoch();
    void reset();
  };

  static double weight_of(const LogOptions& options, std::int64_t weight) {
    return static_cast<double>(options.batch_size > 0 ? options.batch_size : weight);
  }

  static void accumulate(Slot& slot, double value, double weight) {
    switch (slot.reduce) {
      case Reduce::mean:
        slot.accumulated += value * weight;
        slot.weight += weight;
        break;
      case Reduce::sum: slot.accumulated += value; break;
      case Reduce::min: slot.accumulated = std::min(slot.accumulated, value); break;
      case Reduce::max: slot.accumulated = std::max(slot.accumulated, value); break;
    }
  }

  static std::int64_t loader_of(const LogOptions& options, const LogPlace& place) {
    return options.add_dataloader_idx ? place.dataloader : -1;
  }

  Slot& slot_for(LogName name, const LogOptions& options, const LogPlace& place) {
    const std::uint64_t key = key_of(name, place.phase, loader_of(options, place));
    const std::size_t mask = index_.size() - 1;
    for (std::size_t at = key & mask; !index_.empty(); at = (at + 1) & mask) {
      const std::int32_t i = index_[at];
      if (i < 0) break;
      Slot& slot = slots_[static_cast<std::size_t>(i)];
      if (slot.key == key && slot.name_size == name.text().size()) [[likely]] return slot;
    }
    return insert(key, name, options, place);
  }

  static std::uint64_t key_of(LogName name, Phase phase, std::int64_t loader) {
    const std::uint64_t where = static_cast<std::uint64_t>(phase) + 16 * static_cast<std::uint64_t>(loader + 1);
    return name.hash() + where * 0x9e3779b97f4a7c15u;
  }

  [[gnu::cold]] Slot& insert(std::uint64_t key, LogName name, const LogOptions& options, const LogPlace& place);
  Slot& add(Slot slot);
  [[noreturn, gnu::cold]] static void refuse(LogName name, const at::Tensor& value);
  void log_object(LogName name, void* object, double (*compute)(void*), void (*reset)(void*), LogOptions options,
                  const LogPlace& place);

  void enter(std::size_t i);

  using Times = std::vector<std::uint64_t>;

  /// Adds a slot's step or epoch value. Of a name that several phases use, the newer value stays.
  void show(Metrics& out, Times& times, Slot& slot, std::string_view name, bool step);
  void show_both(Metrics& out, Times& times, Slot& slot);

  Metrics collect(bool Slot::*wanted);

  std::vector<Slot> slots_;
  std::uint64_t clock_ = 1;  // grows where epochs begin and end: tells which of two values is the newer
  std::vector<std::int32_t> index_;  // open addressing, a power of two in size
};

#if FULMEN_BODIES
FULMEN_INLINE std::optional<double> Metrics::find(std::string_view name) const {
  for (const Metric& metric : *this) {
    if (metric.name == name) return metric.value;
  }
  return std::nullopt;
}

FULMEN_INLINE double Metrics::at(std::string_view name) const {
  if (const std::optional<double> found = find(name)) return *found;
  fail<std::out_of_range>("there is no value '{}'; there is: {}", name, names());
}

FULMEN_INLINE std::string Metrics::names() const {
  std::string out;
  for (const Metric& metric : *this) (out += out.empty() ? "" : ", ") += metric.name;
  return out.empty() ? "nothing" : out;
}

FULMEN_INLINE double detail::read_any_scalar(const at::Tensor& tensor) { return tensor.item().toDouble(); }

FULMEN_INLINE void detail::DeviceValues::add(const at::Tensor& value, double weight, Reduce reduce) {
  values_.push_back(value.detach());
  weights_.push_back(weight);
  if (values_.size() >= 64) fold(reduce);
}

FULMEN_INLINE double detail::DeviceValues::read(Reduce reduce) {
  fold(reduce);
  return read_scalar(values_.front());
}

FULMEN_INLINE void detail::DeviceValues::fold(Reduce reduce) {
  if (values_.size() < 2 && !(reduce == Reduce::mean && weights_.front() != 1.0)) return;
  at::Tensor all = at::stack(values_).to(at::kDouble);
  if (reduce == Reduce::mean) all = all.mul(at::tensor(weights_, at::TensorOptions(at::kDouble)).to(all.device()));
  at::Tensor one = reduce == Reduce::min ? all.min() : reduce == Reduce::max ? all.max() : all.sum();
  values_.assign(1, std::move(one));
  weights_.assign(1, 1.0);
}

FULMEN_INLINE void MetricStore::log_deferred(LogName name, const at::Tensor& value, const LogOptions& options,
                                             const LogPlace& place) {
  Slot& slot = slot_for(name, options, place);
  slot.last_tensor = value.detach();
  slot.last_on_device = true;
  slot.step_time = clock_;
  if (slot.on_epoch) {
    const double w = weight_of(options, place.weight);
    slot.device.add(value, w, slot.reduce);
    slot.weight += w;
  }
  slot.fresh_step = slot.fresh_epoch = true;
}

FULMEN_INLINE void MetricStore::log_object(LogName name, void* object, double (*compute)(void*), void (*reset)(void*),
                                           LogOptions options, const LogPlace& place) {
  if (options.on_step.value_or(false) || !options.on_epoch.value_or(true)) {
    fail<std::invalid_argument>("log(\"{}\", metric): a metric object has a value at the epoch's end only; leave out "
                                "on_step and on_epoch, or log a number", name.text());
  }
  options.on_step = false, options.on_epoch = true;
  Slot& slot = slot_for(name, options, place);
  slot.object = object;
  slot.compute = compute;
  slot.reset_object = reset;
  slot.fresh_epoch = true;
}

FULMEN_INLINE void MetricStore::begin_epoch(Phase phase) {
  ++clock_;
  for (Slot& slot : slots_) {
    if (slot.phase == phase) slot.reset();
  }
}

FULMEN_INLINE void MetricStore::forget(Phase phase) {
  std::erase_if(slots_, [&](const Slot& slot) { return slot.phase == phase; });
  std::fill(index_.begin(), index_.end(), -1);
  for (std::size_t i = 0; i < slots_.size(); ++i) enter(i);
}

FULMEN_INLINE Metrics MetricStore::step_metrics(Phase phase, std::int64_t dataloader) {
  Metrics out;
  for (Slot& slot : slots_) {
    if (slot.phase != phase || !slot.on_step || !slot.logger || !slot.fresh_step) continue;
    if (slot.dataloader == dataloader || slot.dataloader < 0) out.push_back({slot.step_name(), slot.read_last()});
  }
  return out;
}

FULMEN_INLINE Metrics MetricStore::end_epoch(Phase phase, bool last) {
  Metrics out;
  for (Slot& slot : slots_) {
    if (slot.phase != phase || !slot.on_epoch) continue;
    if (slot.fresh_epoch) {
      slot.epoch_value = slot.read_epoch();
      slot.epoch_time = clock_;
      slot.has_epoch_value = true;
      slot.fresh_epoch = false;
      if (slot.logger) out.push_back({slot.epoch_name(), slot.epoch_value});
    }
    if (last && slot.object != nullptr) {
      slot.reset_object(slot.object);
      slot.object = nullptr;
    }
  }
  ++clock_;
  return out;
}

FULMEN_INLINE Metrics MetricStore::progress_bar_metrics(Phase phase) {
  Metrics out;
  Times times;
  for (Slot& slot : slots_) {
    if (!slot.prog_bar) continue;
    if (slot.phase == phase && slot.on_epoch && !slot.on_step && slot.fresh_epoch) {
      out.push_back({slot.name, slot.read_epoch()});
    } else if (slot.phase == phase || phase == Phase::train) {
      show_both(out, times, slot);
    }
  }
  return out;
}

FULMEN_INLINE Metrics MetricStore::callback_metrics() {
  Metrics out;
  Times times;
  for (Slot& slot : slots_) {
    const bool training = slot.phase == Phase::train, step = training && slot.has_step();
    if (step) show(out, times, slot, slot.step_name(), true);
    if (slot.has_epoch_value) show(out, times, slot, slot.epoch_name(), false);
    if (slot.forks() && (step || slot.has_epoch_value)) show(out, times, slot, slot.name, step && slot.step_is_newer());
  }
  return out;
}

FULMEN_INLINE std::optional<double> MetricStore::find(std::string_view name) {
  std::optional<double> found;
  std::uint64_t newest = 0;
  const auto take = [&](Slot& slot, bool step) {
    const std::uint64_t time = step ? slot.step_time : slot.epoch_time;
    if (found && time < newest) return;
    found = step ? slot.read_last() : slot.epoch_value;
    newest = time;
  };
  for (Slot& slot : slots_) {
    if (slot.has_step() && name == slot.step_name()) take(slot, true);
    if (slot.has_epoch_value && name == slot.epoch_name()) take(slot, false);
    if (!slot.forks() || name != slot.name) continue;
    const bool step = slot.phase == Phase::train && slot.has_step() && slot.step_is_newer();
    if (step || slot.has_epoch_value) take(slot, step);
  }
  return found;
}

FULMEN_INLINE Metrics MetricStore::results(Phase phase) const {
  Metrics out;
  for (const Slot& slot : slots_) {
    if (slot.phase == phase && slot.has_epoch_value) out.push_back({slot.epoch_name(), slot.epoch_value});
  }
  return out;
}

FULMEN_INLINE Metrics MetricStore::progress_bar_metrics() { return collect(&Slot::prog_bar); }

FULMEN_INLINE Metrics MetricStore::logged_metrics() { return collect(&Slot::logger); }

FULMEN_INLINE double MetricStore::Slot::read_last() {
  if (last_on_device) {
    last = detail::read_scalar(last_tensor);
    last_on_device = false;
  }
  return last;
}

FULMEN_INLINE double MetricStore::Slot::read_epoch() {
  if (object != nullptr) return compute(object);
  if (!device.empty()) {
    const double value = device.read(reduce);
    device.clear();
    if (reduce == Reduce::min) accumulated = std::min(accumulated, value);
    else if (reduce == Reduce::max) accumulated = std::max(accumulated, value);
    else accumulated += value;
  }
  return reduce == Reduce::mean ? accumulated / weight : accumulated;
}

FULMEN_INLINE void MetricStore::Slot::reset() {
  fresh_step = fresh_epoch = false;
  weight = 0;
  accumulated = reduce == Reduce::min   ? std::numeric_limits<double>::infinity()
                : reduce == Reduce::max ? -std::numeric_limits<double>::infinity()
                                        : 0;
  device.clear();
  object = nullptr;
}

[[gnu::noinline]] FULMEN_INLINE void MetricStore::refuse(LogName name, const at::Tensor& value) {
  fail<std::invalid_argument>("log(\"{}\"): expected a number or a tensor of one element, got {}", name.text(),
                              value.defined() ? "a tensor of " + std::to_string(value.numel()) + " elements"
                                              : std::string("an undefined tensor"));
}

[[gnu::noinline]] FULMEN_INLINE MetricStore::Slot& MetricStore::insert(std::uint64_t key, LogName name,
                                                                       const LogOptions& options,
                                                                       const LogPlace& place) {
  const bool on_step = options.on_step.value_or(place.by_step), on_epoch = options.on_epoch.value_or(!place.by_step);
  if (name.text().empty()) fail<std::invalid_argument>("log(\"\"): expected a name");
  // No slot is ever made here, so that the steps' own look-ups need not ask.
  if (place.phase == Phase::idle || place.phase == Phase::predict) {
    fail<std::logic_error>("log(\"{}\") was called {}: values are logged in the steps and hooks of training, validation "
                           "and test, from on_…_start to on_…_epoch_end", name.text(),
                           place.phase == Phase::predict ? "while predict runs"
                                                         : "outside of an epoch (in setup, on_fit_start, on_fit_end, "
                                                           "teardown or the like)");
  }
  if (!on_step && !on_epoch) {
    fail<std::invalid_argument>("log(\"{}\"): neither on_step nor on_epoch, so the value would never be read",
                                name.text());
  }
  Slot slot{};
  slot.key = key;
  slot.dataloader = loader_of(options, place);
  slot.phase = place.phase;
  slot.reduce = options.reduce;
  slot.on_step = on_step;
  slot.on_epoch = on_epoch;
  slot.prog_bar = options.prog_bar;
  slot.logger = options.logger;
  slot.set_name(name.text());
  slot.reset();
  return add(std::move(slot));
}

FULMEN_INLINE void MetricStore::Slot::set_name(std::string_view base) {
  name = base;
  name_size = name.size();
  const std::string loader = dataloader < 0 ? "" : "/dataloader_idx_" + std::to_string(dataloader);
  if (forks()) names[0] = name + "_step" + loader, names[1] = name + "_epoch" + loader;
  name += loader;
}

FULMEN_INLINE MetricStore::Slot& MetricStore::add(Slot slot) {
  for (Slot& other : slots_) {
    if (other.name == slot.name) other.shared = slot.shared = true;
  }
  slots_.push_back(std::move(slot));
  if (slots_.size() * 2 > index_.size()) {
    index_.assign(std::max<std::size_t>(32, index_.size() * 2), -1);
    for (std::size_t i = 0; i < slots_.size(); ++i) enter(i);
  } else {
    enter(slots_.size() - 1);
  }
  return slots_.back();
}

FULMEN_INLINE State MetricStore::state_dict() {
  State state("the logged values");
  state.set("clock", static_cast<std::int64_t>(clock_));
  std::vector<State> slots;
  for (Slot& slot : slots_) {
    if (slot.phase == Phase::sanity_check) continue;
    State one;
    one.set("name", slot.name.substr(0, slot.name_size));
    one.set("phase", static_cast<int>(slot.phase)).set("dataloader", slot.dataloader);
    one.set("reduce", static_cast<int>(slot.reduce));
    one.set("on_step", slot.on_step).set("on_epoch", slot.on_epoch);
    one.set("prog_bar", slot.prog_bar).set("logger", slot.logger);
    // Of what an object was to give there is nothing yet.
    const bool fresh_epoch = slot.fresh_epoch && slot.object == nullptr;
    if (fresh_epoch && slot.on_epoch) slot.read_epoch();
    one.set("fresh_step", slot.fresh_step).set("fresh_epoch", fresh_epoch);
    one.set("has_epoch_value", slot.has_epoch_value).set("epoch_value", slot.epoch_value).set("last", slot.read_last());
    one.set("accumulated", slot.accumulated).set("weight", slot.weight);
    one.set("step_time", static_cast<std::int64_t>(slot.step_time));
    one.set("epoch_time", static_cast<std::int64_t>(slot.epoch_time));
    slots.push_back(one);
  }
  state.set("values", slots);
  return state;
}

FULMEN_INLINE void MetricStore::load_state_dict(const State& state) {
  slots_.clear();
  index_.clear();
  for (const State& one : state.get<std::vector<State>>("values")) {
    Slot slot{};
    slot.phase = static_cast<Phase>(one.get<std::uint8_t>("phase"));
    slot.dataloader = one.get<std::int64_t>("dataloader");
    slot.reduce = static_cast<Reduce>(one.get<std::uint8_t>("reduce"));
    slot.on_step = one.get<bool>("on_step"), slot.on_epoch = one.get<bool>("on_epoch");
    slot.prog_bar = one.get<bool>("prog_bar"), slot.logger = one.get<bool>("logger");
    const auto name = one.get<std::string>("name");
    slot.key = key_of(runtime_name(name), slot.phase, slot.dataloader);
    slot.set_name(name);
    slot.reset();
    slot.fresh_step = one.get<bool>("fresh_step"), slot.fresh_epoch = one.get<bool>("fresh_epoch");
    slot.has_epoch_value = one.get<bool>("has_epoch_value"), slot.epoch_value = one.get<double>("epoch_value");
    slot.last = one.get<double>("last");
    slot.accumulated = one.get<double>("accumulated"), slot.weight = one.get<double>("weight");
    slot.step_time = one.get<std::uint64_t>("step_time"), slot.epoch_time = one.get<std::uint64_t>("epoch_time");
    add(std::move(slot));
  }
  clock_ = state.get<std::uint64_t>("clock");
}

FULMEN_INLINE void MetricStore::enter(std::size_t i) {
  const std::size_t mask = index_.size() - 1;
  std::size_t at = slots_[i].key & mask;
  while (index_[at] >= 0) at = (at + 1) & mask;
  index_[at] = static_cast<std::int32_t>(i);
}

FULMEN_INLINE void MetricStore::show(Metrics& out, Times& times, Slot& slot, std::string_view name, bool step) {
  const std::uint64_t time = step ? slot.step_time : slot.epoch_time;
  if (slot.shared) {
    for (std::size_t i = 0; i < out.size(); ++i) {
      if (out[i].name != name) continue;
      if (time >= times[i]) out[i] = {name, step ? slot.read_last() : slot.epoch_value}, times[i] = time;
      return;
    }
  }
  out.push_back({name, step ? slot.read_last() : slot.epoch_value});
  times.push_back(time);
}

FULMEN_INLINE void MetricStore::show_both(Metrics& out, Times& times, Slot& slot) {
  if (slot.has_step()) show(out, times, slot, slot.step_name(), true);
  if (slot.has_epoch_value) show(out, times, slot, slot.epoch_name(), false);
}

FULMEN_INLINE Metrics MetricStore::collect(bool Slot::*wanted) {
  Metrics out;
  Times times;
  for (Slot& slot : slots_) {
    if (slot.*wanted) show_both(out, times, slot);
  }
  return out;
}
#endif

}  // namespace fulmen
