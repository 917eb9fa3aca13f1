// A run that ends somewhere and goes on from its checkpoint gives the same bits as one that never ended.
#include "../testing.hpp"

#include <fulmen/callbacks/early_stopping.hpp>
#include <fulmen/callbacks/gradient_accumulation_scheduler.hpp>
#include <fulmen/callbacks/model_checkpoint.hpp>
#include <fulmen/callbacks/weight_averaging.hpp>
#include <fulmen/criteria/classification.hpp>
#include <fulmen/data/combined_loader.hpp>
#include <fulmen/data/prefetch.hpp>
#include <fulmen/data/tensor_loader.hpp>
#include <fulmen/optim/adam.hpp>
#include <fulmen/optim/sgd.hpp>
#include <fulmen/schedule/decay.hpp>
#include <fulmen/schedule/plateau.hpp>
#include <fulmen/seed.hpp>
#include <fulmen/trainer.hpp>

#include <torch/torch.h>

#include <gtest/gtest.h>

#include <csignal>
#include <map>
#include <random>
#include <string>
#include <vector>

namespace {

using namespace fulmen;

// ---- What a run does that can be seen

/// A line as a logger gets it.
struct Line {
  std::int64_t step;
  std::vector<std::pair<std::string, double>> values;
  bool operator==(const Line&) const = default;
};
std::ostream& operator<<(std::ostream& out, const Line& line) {
  out << "step " << line.step;
  for (const auto& [name, value] : line.values) out << ' ' << name << '=' << value;
  return out;
}
struct MemoryLogger {
  std::vector<Line>* lines;
  void log_metrics(Context&, const Metrics& metrics, std::int64_t step) {
    Line line{step, {}};
    for (const Metric& metric : metrics) line.values.emplace_back(metric.name, metric.value);
    lines->push_back(line);
  }
};

/// Places at which a run may be ended.
enum class Place { batch_start, in_step, batch_end, validation_step, validation_batch_end, validation_end, epoch_end, count };

struct Killed : std::exception {};

/// Saves at the n-th time that a place is passed, and ends the run there: as a kill would (by an exception after the file is
/// complete), or by a signal, after which the loop ends in order.
struct Killer {
  static constexpr bool saves_checkpoints = true;  // told last

  std::filesystem::path file;
  std::map<Place, int>* passed;
  std::vector<Line>* lines;
  Place place = Place::count;
  int n = -1;
  std::size_t lines_when_saved = 0;
  std::size_t lines_before_validation = 0;

  bool here(auto& ctx, Place at) { return !ctx.sanity_checking() && (*passed)[at]++ == n && at == place; }
  void save(auto& ctx) {
    fulmen::detail::save_checkpoint(ctx, file);
    lines_when_saved = lines->size();
  }
  void pass(auto& ctx, Place at) {
    if (!here(ctx, at)) return;
    save(ctx);
    throw Killed();
  }
  void on_train_batch_start(auto& ctx) { pass(ctx, Place::batch_start); }
  void on_train_batch_end(auto& ctx) { pass(ctx, Place::batch_end); }
  void on_train_epoch_end(auto& ctx) { pass(ctx, Place::epoch_end); }
  void on_validation_start(auto&) { lines_before_validation = lines->size(); }
  void on_validation_end(auto& ctx) { pass(ctx, Place::validation_end); }
  // In the middle of a batch a signal is what ends a run in order.
  void on_before_backward(auto& ctx) {
    if (here(ctx, Place::in_step)) std::raise(SIGTERM);
  }
  void on_validation_batch_start(auto& ctx) {
    if (here(ctx, Place::validation_step)) std::raise(SIGUSR1);
  }
  void on_validation_batch_end(auto& ctx) {
    if (!here(ctx, Place::validation_batch_end)) return;
    save(ctx);
    lines_when_saved = lines_before_validation;  // this validation is done again
    throw Killed();
  }
  void on_exception(auto& ctx) {
    if (!ctx.interrupted()) return;
    save(ctx);
    if (place == Place::validation_step) lines_when_saved = lines_before_validation;
  }
};

// ---- Modules: random numbers in training and in validation, buffers, values logged in all ways

struct Net : torch::nn::Module {
  torch::nn::Linear in{nullptr}, out{nullptr};
  torch::nn::BatchNorm1d norm{nullptr};
  torch::nn::Dropout dropout{nullptr};

  Net() {
    in = register_module("in", torch::nn::Linear(4, 8));
    norm = register_module("norm", torch::nn::BatchNorm1d(8));
    dropout = register_module("dropout", torch::nn::Dropout(0.3));
    out = register_module("out", torch::nn::Linear(8, 2));
  }
  torch::Tensor forward(torch::Tensor x) { return out(dropout(torch::relu(norm(in(x))))); }
  torch::Tensor loss(auto& batch) { return torch::cross_entropy_loss(forward(std::get<0>(batch)), std::get<1>(batch)); }
};

struct Automatic : Net {
  torch::Tensor training_step(auto& ctx, auto& batch) {
    const torch::Tensor loss = this->loss(batch);
    ctx.log("train/loss", loss, {.on_step = true, .on_epoch = true});
    ctx.log("train/largest", loss, {.on_step = false, .on_epoch = true, .reduce = Reduce::max});
    return loss;
  }
  void validation_step(auto& ctx, auto& batch) {
    ctx.log("val/loss", loss(batch));
    ctx.log("val/noise", torch::rand({}), {.on_step = true, .on_epoch = true});
  }
};

/// Two optimizers, one of which gathers gradients over batches.
struct ByHand : Net {
  static constexpr bool automatic_optimization = false;
  void training_step(auto& ctx, auto& batch, std::int64_t batch_idx) {
    auto& [first, second] = ctx.optimizers();
    const torch::Tensor loss = this->loss(batch);
    ctx.log("train/loss", loss, {.on_step = true, .on_epoch = true});
    first.zero_grad();
    ctx.backward(loss);
    first.step();
    if (batch_idx % 3 == 2) {
      second.step();
      second.zero_grad();
    }
  }
  void validation_step(auto& ctx, auto& batch) { ctx.log("val/loss", loss(batch)); }
};

/// A batch of each of two loaders.
struct OnBoth : Automatic {
  torch::Tensor training_step(auto& ctx, auto& batch) {
    const torch::Tensor loss = this->loss(std::get<0>(batch)) + this->loss(std::get<1>(batch));
    ctx.log("train/loss", loss, {.on_step = true, .on_epoch = true});
    return loss;
  }
};

// ---- Loaders

torch::Tensor images() { return torch::linspace(-2, 2, 23 * 4).view({23, 4}).sin(); }
torch::Tensor labels() { return (torch::arange(23) * 7 % 3 == 0).to(torch::kLong); }
using Pairs = TensorLoader<2>;

/// Its batches, without telling how many there are.
struct Unsized {
  Pairs loader;
  auto begin() { return loader.begin(); }
  auto end() { return loader.end(); }
};

/// A stream with a state of its own: goes round its samples without ever beginning anew, three batches an epoch.
struct Stream {
  std::int64_t given = 0;
  struct Iterator {
    Stream* stream;
    std::int64_t left;
    auto operator*() const {
      const std::int64_t first = 5 * (stream->given++ % 4);
      return std::tuple{images().narrow(0, first, 5), labels().narrow(0, first, 5)};
    }
    Iterator& operator++() {
      --left;
      return *this;
    }
    bool operator==(std::default_sentinel_t) const { return left == 0; }
  };
  // After a load in mid-epoch, the rest of that epoch.
  Iterator begin() { return {this, 3 - given % 3}; }
  std::default_sentinel_t end() const { return {}; }
  std::int64_t size() const { return 3; }
  State state_dict() const { return State().set("given", given); }
  void load_state_dict(const State& state) { given = state.get<std::int64_t>("given"); }
};

/// A data module with a state, which training changes.
struct Data {
  Pairs train, val;
  std::int64_t epochs = 0, batches = 0;
  Pairs& train_dataloader() { return train; }
  Pairs& val_dataloader() { return val; }
  // Each batch is moved by how many there were before.
  auto on_after_batch_transfer(auto& ctx, auto& batch) {
    auto out = batch;
    if (ctx.phase() == Phase::train) std::get<0>(out) = std::get<0>(out) + 0.01 * static_cast<double>(batches++);
    return out;
  }
  State state_dict() const { return State().set("batches", batches); }
  void load_state_dict(const State& state) { batches = state.get<std::int64_t>("batches"); }
};

// ---- Runs

/// A number of random choices.
class Choices {
 public:
  explicit Choices(unsigned seed) : random_(seed) {}
  std::int64_t among(std::initializer_list<std::int64_t> values) {
    return values.begin()[std::uniform_int_distribution<std::size_t>(0, values.size() - 1)(random_)];
  }
  std::int64_t below(std::int64_t n) { return std::uniform_int_distribution<std::int64_t>(0, n - 1)(random_); }

 private:
  std::mt19937 random_;
};

struct Config {
  Options options;
  LoaderOptions train;
  std::int64_t patience = 2, every = 1;
  std::map<std::int64_t, std::int64_t> accumulate{};
};

Config random_config(Choices& choose, const std::filesystem::path& folder, bool has_size) {
  Config c;
  Options& o = c.options;
  o.max_epochs = choose.among({2, 3, 4});
  o.max_steps = choose.among({-1, -1, 9});
  o.min_epochs = choose.among({0, 3});
  o.num_sanity_val_steps = choose.among({0, 2});
  o.log_every_n_steps = choose.among({1, 2, 3, 50});
  o.check_val_every_n_epoch = choose.among({1, 1, 2, 0});
  if (o.check_val_every_n_epoch == 0) o.val_check_interval = choose.among({2, 3, 5});
  else if (has_size) o.val_check_interval = choose.among({0, 1, 2}) == 0 ? Limit() : Limit(choose.among({1, 2}));
  if (has_size && choose.below(4) == 0) o.limit_train_batches = 0.7;
  o.accumulate_grad_batches = choose.among({1, 1, 2, 3});
  o.gradient_clip_val = choose.among({0, 1}) == 1 ? 0.5 : 0.0;
  o.inference_mode = choose.below(2) == 0;
  o.exit_on_interrupt = false;
  o.default_root_dir = folder;
  c.train = {.batch_size = choose.among({3, 4, 5}), .shuffle = choose.below(4) != 0, .drop_last = choose.below(2) == 0};
  c.patience = choose.among({0, 1, 5});
  c.every = choose.among({1, 2});
  c.accumulate = {{1, choose.among({1, 2, 3})}};
  return c;
}

/// What is left of a run.
struct Outcome {
  std::vector<std::pair<std::string, torch::Tensor>> tensors;
  std::vector<Line> lines;
  std::int64_t epochs = 0, steps = 0;
};

void note(Outcome& outcome, const std::string& name, const c10::IValue& value) {
  if (value.isTensor()) {
    outcome.tensors.emplace_back(name, value.toTensor().clone());
  } else if (value.isGenericDict()) {
    for (const auto& item : value.toGenericDict()) {
      note(outcome, name + "." + (item.key().isString() ? item.key().toStringRef() : std::to_string(item.key().toInt())), item.value());
    }
  } else if (value.isList()) {
    std::size_t i = 0;
    for (const c10::IValue& item : value.toListRef()) note(outcome, name + "." + std::to_string(i++), item);
  } else if (value.isDouble() || value.isInt()) {
    outcome.tensors.emplace_back(name, torch::tensor(value.isDouble() ? value.toDouble() : double(value.toInt()), torch::kDouble));
  }
}

/// Runs `make(config, killer, lines)`'s Trainer through `fit(trainer, arguments)`.
template <class Make, class Fit>
class Experiment {
 public:
  /// @param counts_batches taking a batch from the loader changes a state of the user's, so that a checkpoint saved between that
  /// and the batch's end would take it twice
  Experiment(Make make, Fit fit, bool has_size, bool counts_batches = false)
      : make_(make), fit_(fit), has_size_(has_size), first_place_(counts_batches ? 1 : 0) {}

  void operator()(unsigned configs) {
    at::set_num_threads(1);  // the tensors are small
    std::map<Place, int> tried;
    for (unsigned seed = 0; seed < configs; ++seed) {
      Choices choose(seed);
      const Config config = random_config(choose, folder_.path, has_size_);
      std::map<Place, int> passed;
      const Outcome whole = run(config, {}, Place::count, 0, &passed, nullptr);
      // The run is ended up to three times.
      std::filesystem::path from;
      std::vector<Line> lines;
      std::string ends;
      for (std::int64_t times = 1 + choose.below(3); times > 0; --times) {
        const Place place = static_cast<Place>(first_place_ + choose.below(static_cast<std::int64_t>(Place::count) - first_place_));
        if (passed[place] == 0) continue;
        const int n = static_cast<int>(choose.below(passed[place]));
        std::map<Place, int> again;
        bool ended = false;
        const Outcome part = run(config, from, place, n, &again, &ended);
        if (!ended) continue;  // what was left had fewer such places: the next try begins where this one did
        ends += " " + std::to_string(static_cast<int>(place)) + "/" + std::to_string(n);
        lines.insert(lines.end(), part.lines.begin(), part.lines.end());
        from = file();
        ++tried[place];
      }
      const Outcome rest = run(config, from, Place::count, 0, nullptr, nullptr);
      lines.insert(lines.end(), rest.lines.begin(), rest.lines.end());
      SCOPED_TRACE("config " + std::to_string(seed) + ", ended at" + ends);
      EXPECT_EQ(rest.epochs, whole.epochs);
      EXPECT_EQ(rest.steps, whole.steps);
      ASSERT_EQ(rest.tensors.size(), whole.tensors.size());
      for (std::size_t i = 0; i < whole.tensors.size(); ++i) {
        ASSERT_EQ(rest.tensors[i].first, whole.tensors[i].first);
        const torch::Tensor a = rest.tensors[i].second, b = whole.tensors[i].second;
        ASSERT_TRUE(torch::allclose(a, b, 0, 0, /*equal_nan=*/true)) << whole.tensors[i].first << ":\n" << a << "\nexpected\n" << b;
      }
      ASSERT_EQ(lines, whole.lines);
    }
    for (int place = first_place_; place < static_cast<int>(Place::count); ++place) {
      EXPECT_GT(tried[static_cast<Place>(place)], 0) << "no run was ended at place " << place;
    }
  }

 private:
  std::filesystem::path file() const { return folder_.path / "run.ckpt"; }

  Outcome run(const Config& config, const std::filesystem::path& from, Place place, int n, std::map<Place, int>* passed, bool* ended) {
    Outcome outcome;
    std::map<Place, int> nobody;
    // A resumed process has other random numbers until it has loaded.
    seed_everything(from.empty() ? 1 : 2);
    auto trainer = make_(config, Killer{file(), passed ? passed : &nobody, &outcome.lines, place, n}, MemoryLogger{&outcome.lines});
    auto& ctx = trainer->context();
    bool killed = false;
    try {
      fit_(*trainer, config, StageArguments{from});
      killed = trainer->interrupted();
    } catch (const Killed&) {
      killed = true;
    }
    if (ended) *ended = killed;
    if (killed) outcome.lines.resize(std::get<Killer>(ctx.callbacks()).lines_when_saved);
    State all = fulmen::detail::collect_checkpoint(ctx);
    for (const char* what : {"state_dict", "optimizer_states", "lr_schedulers"}) note(outcome, what, all.get<c10::IValue>(what));
    note(outcome, "rng_state", all.get<State>("fulmen").get<at::Tensor>("rng_state"));
    // Where a run's files are does not belong to its outcome.
    const State callbacks = all.get<State>("callbacks");
    for (const std::string& key : callbacks.keys()) note(outcome, "callbacks." + key, callbacks.get<c10::IValue>(key));
    outcome.epochs = ctx.epoch(), outcome.steps = ctx.global_step();
    return outcome;
  }

  Make make_;
  Fit fit_;
  bool has_size_;
  int first_place_;
  TemporaryFolder folder_;
};

constexpr auto runtime = [](MemoryLogger logger) { return Runtime{.loggers = std::tuple{logger}, .defaults = std::tuple<>{}}; };

template <class M, class O, class S, class... C>
auto make_trainer(const Config& config, O optimizer, S scheduler, MemoryLogger logger, C... callback) {
  using T = decltype(Trainer{std::make_shared<M>(), none, optimizer, scheduler, Identity{}, callbacks(callback...), config.options, runtime(logger)});
  return std::make_unique<T>(std::make_shared<M>(), none, optimizer, scheduler, Identity{}, callbacks(callback...), config.options, runtime(logger));
}

const LoaderOptions in_order{.batch_size = 8};

TEST(Resume, SchedulerByStepEarlyStoppingAndAnAverageOfTheWeights) {
  Experiment(
      [](const Config& c, Killer killer, MemoryLogger logger) {
        return make_trainer<Automatic>(c, AdamW{.lr = 0.02}, per_step(StepLR{.step_size = 3}, c.every), logger,
                                       EarlyStopping{.monitor = "val/loss", .patience = c.patience, .strict = false},
                                       GradientAccumulationScheduler{.scheduling = c.accumulate}, EMAWeightAveraging{.decay = 0.9}, killer);
      },
      [](auto& trainer, const Config& c, const StageArguments& arguments) {
        trainer.fit(Pairs({images(), labels()}, c.train), Pairs({images(), labels()}, in_order), arguments);
      },
      true)(150);
}

TEST(Resume, SchedulerThatFollowsAValueAndALoaderWithoutSize) {
  Experiment(
      [](const Config& c, Killer killer, MemoryLogger logger) {
        return make_trainer<Automatic>(c, SGD{.lr = 0.05, .momentum = 0.9},
                                       monitoring("train/loss", ReduceLROnPlateau{.patience = 0}), logger, killer);
      },
      [](auto& trainer, const Config& c, const StageArguments& arguments) {
        trainer.fit(Unsized{Pairs({images(), labels()}, c.train)}, std::tuple{Pairs({images(), labels()}, in_order), Pairs({images(), labels()}, c.train)},
                    arguments);
      },
      false)(120);
}

TEST(Resume, OptimizersSteppedByHandAndPrefetching) {
  Experiment(
      [](const Config& c, Killer killer, MemoryLogger logger) {
        return make_trainer<ByHand>(c, std::tuple{SGD{.lr = 0.05}, AdamW{.lr = 0.01}}, none, logger, killer);
      },
      [](auto& trainer, const Config& c, const StageArguments& arguments) {
        trainer.fit(prefetch(Pairs({images(), labels()}, c.train)), Pairs({images(), labels()}, in_order), arguments);
      },
      true)(100);
}

TEST(Resume, DataModuleWithAState) {
  Experiment(
      [](const Config& c, Killer killer, MemoryLogger logger) {
        return make_trainer<Automatic>(c, AdamW{.lr = 0.02}, ExponentialLR{.gamma = 0.7}, logger, killer);
      },
      [](auto& trainer, const Config& c, const StageArguments& arguments) {
        Data data{Pairs({images(), labels()}, c.train), Pairs({images(), labels()}, in_order)};
        trainer.fit(data, arguments);
      },
      true, true)(100);
}

TEST(Resume, LoaderWithAState) {
  Experiment(
      [](const Config& c, Killer killer, MemoryLogger logger) {
        Config whole_epochs = c;  // an epoch that is cut short leaves this stream in the middle of one
        whole_epochs.options.limit_train_batches = {}, whole_epochs.options.max_steps = -1;
        return make_trainer<Automatic>(whole_epochs, AdamW{.lr = 0.02}, none, logger, killer);
      },
      [](auto& trainer, const Config&, const StageArguments& arguments) {
        trainer.fit(Stream{}, Pairs({images(), labels()}, in_order), arguments);
      },
      true, true)(100);
}

TEST(Resume, CombinedLoadersOfWhichOneBeginsAgainInMidEpoch) {
  Experiment(
      [](const Config& c, Killer killer, MemoryLogger logger) { return make_trainer<OnBoth>(c, AdamW{.lr = 0.02}, none, logger, killer); },
      [](auto& trainer, const Config& c, const StageArguments& arguments) {
        const torch::Tensor some = torch::arange(0, 23, 3);
        trainer.fit(combined(CombineMode::max_size_cycle, Pairs({images(), labels()}, c.train),
                             Pairs({images().index_select(0, some), labels().index_select(0, some)}, {.batch_size = 3, .shuffle = true})),
                    Pairs({images(), labels()}, in_order), arguments);
      },
      true, true)(100);
}

}  // namespace
