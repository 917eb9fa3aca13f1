// What a loop costs besides the work: the same steps and callbacks driven by a loop written by hand, by fulmen, and by
// loops with virtual functions, std::function and type-erased wrappers. bench/dispatch.py prints the table.
#include "callgrind.hpp"

#include <fulmen/trainer.hpp>

#include <benchmark/benchmark.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace {

using Batch = std::array<float, 4>;

/// The same batch, so many times.
struct Loader {
  Batch batch{0.1f, 0.2f, 0.3f, 0.4f};
  std::int64_t count = 0;

  struct Iterator {
    const Batch* batch;
    std::int64_t i;
    const Batch& operator*() const { return *batch; }
    Iterator& operator++() { return ++i, *this; }
    bool operator!=(const Iterator& other) const { return i != other.i; }
  };
  Iterator begin() const { return {&batch, 0}; }
  Iterator end() const { return {&batch, count}; }
  std::int64_t size() const { return count; }
};

/// A step that does nothing, as far as a compiler can be kept from seeing it.
struct Empty {
  void work(const Batch& batch) { benchmark::DoNotOptimize(&batch); }
};
/// A step of a linear regression on plain numbers.
struct Tiny {
  std::array<float, 3> weights{0.5f, 0.5f, 0.5f};
  void work(const Batch& batch) {
    const float error = weights[0] * batch[0] + weights[1] * batch[1] + weights[2] - batch[3];
    weights[0] -= 0.01f * error * batch[0];
    weights[1] -= 0.01f * error * batch[1];
    weights[2] -= 0.01f * error;
    benchmark::DoNotOptimize(weights);
  }
};

/// Set by a handler of Ctrl-C.
std::atomic<bool> interrupted{false};

/// What all loops have to do besides: they stop when asked to, on Ctrl-C or after a number of steps, and log every 50 steps.
struct Context {
  bool stop = false;
  std::int64_t step = 0, max_steps = -1, log_every = 50, logged = 0;
  [[gnu::noinline]] void log() { ++logged; }
};
/// Whether the loop is to go on after a step.
[[gnu::always_inline]] inline bool after_step(Context& ctx) {
  ++ctx.step;
  if (ctx.step % ctx.log_every == 0) ctx.log();
  return !ctx.stop && !interrupted.load(std::memory_order_relaxed) && (ctx.max_steps < 0 || ctx.step < ctx.max_steps);
}

std::int64_t calls = 0;  // of callbacks

// 1. By hand: the calls stand in the loop. Counts of callbacks are template arguments only to write the loops once.

template <class Work, int Answering>
struct ByHand {
  Work work;
  Context ctx;
  std::array<std::int64_t, Answering == 0 ? 1 : Answering> counts{};

  void run(const Loader& loader) {
    for (const Batch& batch : loader) {
      work.work(batch);
      for (int k = 0; k < Answering; ++k) ++counts[static_cast<std::size_t>(k)];
      if (!after_step(ctx)) break;
    }
    for (const std::int64_t count : counts) calls += count;
    counts = {};
  }
};

// 2. fulmen.

template <class Work>
struct Module : torch::nn::Module {
  static constexpr bool automatic_optimization = false;
  Work work;
  void training_step(const Batch& batch) { work.work(batch); }
};
template <int>
struct Silent {
  void on_validation_batch_end() {}
};
template <int>
struct Answers {
  std::int64_t count = 0;
  void on_train_batch_end() { ++count; }
};
template <int Callbacks, int Answering>
auto make_callbacks() {
  return []<int... I>(std::integer_sequence<int, I...>) {
    // Those that answer lie among the others.
    return std::tuple<std::conditional_t<(I * Answering) % Callbacks < Answering, Answers<I>, Silent<I>>...>();
  }(std::make_integer_sequence<int, Callbacks>());
}

template <class Work, int Callbacks, int Answering>
struct Fulmen {
  fulmen::Trainer<Module<Work>, fulmen::None, fulmen::None, fulmen::None, fulmen::Identity,
                  decltype(make_callbacks<Callbacks == 0 ? 1 : Callbacks, Answering>()), fulmen::Runtime<>>
      trainer{Module<Work>{}, fulmen::none, fulmen::none, fulmen::none, fulmen::Identity{},
              make_callbacks<Callbacks == 0 ? 1 : Callbacks, Answering>(), {.max_epochs = 0}, fulmen::Runtime<>{.device = at::kCPU}};

  void run(const Loader& loader) {
    fulmen::Options options = trainer.options();
    ++options.max_epochs;
    trainer.set_options(options);
    trainer.fit(loader);
    std::apply([](auto&... callback) { (take(callback), ...); }, trainer.context().callbacks());
  }
  template <class Callback>
  static void take(Callback& callback) {
    if constexpr (requires { callback.count; }) calls += std::exchange(callback.count, 0);
  }
};

// 3. Virtual functions.

struct VirtualModule {
  virtual ~VirtualModule() = default;
  virtual void training_step(Context&, const Batch&, std::int64_t) = 0;
};
struct VirtualCallback {
  virtual ~VirtualCallback() = default;
  virtual void on_train_batch_start(Context&, const Batch&, std::int64_t) {}
  virtual void on_train_batch_end(Context&, const Batch&, std::int64_t) {}
};
template <class Work>
struct VirtualWork final : VirtualModule {
  Work work;
  void training_step(Context&, const Batch& batch, std::int64_t) override { work.work(batch); }
};
struct VirtualSilent final : VirtualCallback {};
struct VirtualAnswers final : VirtualCallback {
  std::int64_t count = 0;
  void on_train_batch_end(Context&, const Batch&, std::int64_t) override { ++count; }
  ~VirtualAnswers() override { calls += count; }
};
template <class T>
[[gnu::noinline]] std::unique_ptr<T> opaque(std::unique_ptr<T> pointer) {
  benchmark::DoNotOptimize(pointer);
  return pointer;
}

template <class Work, int Callbacks, int Answering>
struct Virtual {
  Context ctx;
  std::unique_ptr<VirtualModule> module = opaque<VirtualModule>(std::make_unique<VirtualWork<Work>>());
  std::vector<std::unique_ptr<VirtualCallback>> callbacks;

  Virtual() {
    for (int k = 0; k < Callbacks; ++k) {
      if (k * Answering % Callbacks < Answering) callbacks.push_back(opaque<VirtualCallback>(std::make_unique<VirtualAnswers>()));
      else callbacks.push_back(opaque<VirtualCallback>(std::make_unique<VirtualSilent>()));
    }
  }
  void run(const Loader& loader) {
    std::int64_t batch_idx = 0;
    for (const Batch& batch : loader) {
      for (const auto& callback : callbacks) callback->on_train_batch_start(ctx, batch, batch_idx);
      module->training_step(ctx, batch, batch_idx);
      for (const auto& callback : callbacks) callback->on_train_batch_end(ctx, batch, batch_idx);
      ++batch_idx;
      if (!after_step(ctx)) break;
    }
  }
};

// 4. std::function: hooks are lists of functions, so callbacks that do not answer are not in them.

template <class Work, int Callbacks, int Answering>
struct Functions {
  using Hook = std::function<void(Context&, const Batch&, std::int64_t)>;
  Context ctx;
  std::shared_ptr<Work> work = std::make_shared<Work>();
  std::array<std::int64_t, Callbacks == 0 ? 1 : Callbacks> counts{};
  Hook training_step = [this](Context&, const Batch& batch, std::int64_t) { work->work(batch); };
  std::vector<Hook> on_train_batch_start, on_train_batch_end;

  Functions() {
    for (int k = 0; k < Answering; ++k) {
      on_train_batch_end.push_back([this, k](Context&, const Batch&, std::int64_t) { ++counts[static_cast<std::size_t>(k)]; });
    }
    benchmark::DoNotOptimize(training_step), benchmark::DoNotOptimize(on_train_batch_end);
  }
  void run(const Loader& loader) {
    std::int64_t batch_idx = 0;
    for (const Batch& batch : loader) {
      for (const Hook& hook : on_train_batch_start) hook(ctx, batch, batch_idx);
      training_step(ctx, batch, batch_idx);
      for (const Hook& hook : on_train_batch_end) hook(ctx, batch, batch_idx);
      ++batch_idx;
      if (!after_step(ctx)) break;
    }
    for (std::int64_t& count : counts) calls += std::exchange(count, 0);
  }
};

// 5. A type-erased wrapper: any object with some of the hooks, behind a table that is made for its type; a hook that it does
// not have is a null pointer.

class AnyCallback {
  using Hook = void (*)(void*, Context&, const Batch&, std::int64_t);
  struct Table {
    Hook start, end;
    void (*destroy)(void*);
  };
  template <class T>
  static constexpr Table table{
      [] {
        if constexpr (requires(T& t, Context& c, const Batch& b) { t.on_train_batch_start(c, b, 0); }) {
          return Hook([](void* self, Context& c, const Batch& b, std::int64_t i) { static_cast<T*>(self)->on_train_batch_start(c, b, i); });
        } else {
          return Hook(nullptr);
        }
      }(),
      [] {
        if constexpr (requires(T& t, Context& c, const Batch& b) { t.on_train_batch_end(c, b, 0); }) {
          return Hook([](void* self, Context& c, const Batch& b, std::int64_t i) { static_cast<T*>(self)->on_train_batch_end(c, b, i); });
        } else {
          return Hook(nullptr);
        }
      }(),
      [](void* self) { delete static_cast<T*>(self); }};
  void* self_;
  const Table* table_;

 public:
  template <class T>
    requires(!std::is_same_v<T, AnyCallback>)
  explicit AnyCallback(T object) : self_(new T(std::move(object))), table_(&table<T>) {
    asm volatile("" : "+r"(table_));  // not to be seen through
  }
  AnyCallback(AnyCallback&& other) noexcept : self_(std::exchange(other.self_, nullptr)), table_(other.table_) {}
  AnyCallback& operator=(AnyCallback&&) = delete;
  ~AnyCallback() {
    if (self_) table_->destroy(self_);
  }
  void on_train_batch_start(Context& ctx, const Batch& batch, std::int64_t i) const {
    if (table_->start) table_->start(self_, ctx, batch, i);
  }
  void on_train_batch_end(Context& ctx, const Batch& batch, std::int64_t i) const {
    if (table_->end) table_->end(self_, ctx, batch, i);
  }
};
struct ErasedSilent {};
struct ErasedAnswers {
  std::int64_t* count;
  void on_train_batch_end(Context&, const Batch&, std::int64_t) { ++*count; }
};

template <class Work, int Callbacks, int Answering>
struct Erased {
  Context ctx;
  Work work;
  std::array<std::int64_t, Callbacks == 0 ? 1 : Callbacks> counts{};
  std::vector<AnyCallback> callbacks;

  Erased() {
    for (int k = 0; k < Callbacks; ++k) {
      if (k * Answering % Callbacks < Answering) callbacks.emplace_back(ErasedAnswers{&counts[static_cast<std::size_t>(k)]});
      else callbacks.emplace_back(ErasedSilent{});
    }
  }
  void run(const Loader& loader) {
    std::int64_t batch_idx = 0;
    for (const Batch& batch : loader) {
      for (const AnyCallback& callback : callbacks) callback.on_train_batch_start(ctx, batch, batch_idx);
      work.work(batch);
      for (const AnyCallback& callback : callbacks) callback.on_train_batch_end(ctx, batch, batch_idx);
      ++batch_idx;
      if (!after_step(ctx)) break;
    }
    for (std::int64_t& count : counts) calls += std::exchange(count, 0);
  }
};

template <class Loop>
void count(const std::string& name) {
  Loop loop;
  count_instructions(name, 1000, [&](std::int64_t batches) { loop.run(Loader{.count = batches}); });
}

template <class Loop>
void time(const std::string& name) {
  benchmark::RegisterBenchmark(name.c_str(), [](benchmark::State& state) {
    Loop loop;
    const Loader loader{.count = 100'000};
    for (auto _ : state) loop.run(loader);
    state.counters["ns_a_step"] = benchmark::Counter(static_cast<double>(state.iterations() * loader.count) * 1e-9,
                                                     benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
  });
}

template <class Loop>
void add(bool counting, const std::string& name) {
  if (counting) count<Loop>(name);
  else time<Loop>(name);
}

template <class Work, int Callbacks, int Answering>
void add_all(bool counting, const char* work) {
  const auto name = [&](const char* peer) {
    return std::string(peer) + "/" + work + "/" + std::to_string(Callbacks) + "/" + std::to_string(Answering);
  };
  add<ByHand<Work, Answering>>(counting, name("by hand"));
  add<Fulmen<Work, Callbacks, Answering>>(counting, name("fulmen"));
  add<Virtual<Work, Callbacks, Answering>>(counting, name("virtual"));
  add<Functions<Work, Callbacks, Answering>>(counting, name("std::function"));
  add<Erased<Work, Callbacks, Answering>>(counting, name("type-erased"));
}

template <class Work>
void add_work(bool counting, const char* work) {
  add_all<Work, 0, 0>(counting, work);
  add_all<Work, 1, 0>(counting, work), add_all<Work, 1, 1>(counting, work);
  add_all<Work, 4, 0>(counting, work), add_all<Work, 4, 2>(counting, work), add_all<Work, 4, 4>(counting, work);
  add_all<Work, 16, 0>(counting, work), add_all<Work, 16, 8>(counting, work), add_all<Work, 16, 16>(counting, work);
}

}  // namespace

int main(int argc, char** argv) {
  const bool counting = argc == 2 && std::strcmp(argv[1], "count") == 0;
  add_work<Empty>(counting, "nothing");
  add_work<Tiny>(counting, "tiny");
  if (!counting) {
    benchmark::Initialize(&argc, argv);
    benchmark::RunSpecifiedBenchmarks();
  }
}
