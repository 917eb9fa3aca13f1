// Training without work in it, with no callback, with sixteen that have nothing to say about a batch, and with one
// among sixteen that has: cost.py has Valgrind count the instructions of each. Called as: cost BATCHES.
#include "../../bench/callgrind.hpp"

#include <fulmen/optim/sgd.hpp>
#include <fulmen/trainer.hpp>

#include <cstdint>
#include <cstdlib>
#include <string>
#include <tuple>
#include <utility>

namespace {

struct Counter : torch::nn::Module {
  static constexpr bool automatic_optimization = false;
  std::int64_t batches = 0;
  void training_step(std::int64_t) { ++batches; }
};

/// Batches that are numbers: with tensors it would be counted, too, whether the compiler happens to inline their copying.
struct Numbers {
  std::int64_t count;

  struct Iterator {
    std::int64_t i;
    std::int64_t operator*() const { return i; }
    Iterator& operator++() { return ++i, *this; }
    bool operator!=(const Iterator& other) const { return i != other.i; }
  };
  Iterator begin() const { return {0}; }
  Iterator end() const { return {count}; }
  std::int64_t size() const { return count; }
};

/// Answers hooks of each stage, but none that runs once a batch.
template <int>
struct Elsewhere {
  std::int64_t calls = 0;
  void on_train_epoch_start(fulmen::Context& ctx) { calls += ctx.epoch(); }
  void on_validation_batch_end() { ++calls; }
  void on_test_batch_end() { ++calls; }
};

struct Counting {
  std::int64_t calls = 0;
  void on_train_batch_end(fulmen::Context&) { ++calls; }
};

template <int... I>
auto sixteen(std::integer_sequence<int, I...>) {
  return std::tuple<Elsewhere<I>...>();
}
template <int... I>
auto one_of_sixteen(std::integer_sequence<int, I...>) {
  return std::tuple_cat(std::tuple<Elsewhere<I>..., Elsewhere<7>, Counting>(),
                        std::tuple<Elsewhere<-1 - I>...>());
}

/// An epoch of so many batches, and one of twice as many.
template <class Callbacks>
void measure(const char* name, std::int64_t batches, Callbacks callbacks) {
  fulmen::Trainer trainer{Counter{},
                          fulmen::none,
                          fulmen::none,
                          fulmen::none,
                          fulmen::Identity{},
                          std::move(callbacks),
                          {.max_epochs = 0, .log_every_n_steps = std::int64_t{1} << 60},
                          fulmen::Runtime<>{.device = at::kCPU}};
  std::int64_t expected = 0;
  count_instructions(name, batches, [&](std::int64_t count) {
    Numbers loader{count};
    fulmen::Options options = trainer.options();
    ++options.max_epochs;
    trainer.set_options(options);
    trainer.fit(loader);
    expected += count;
  });
  if (trainer.module().batches != expected) std::abort();
}

}  // namespace

int main(int argc, char** argv) {
  const std::int64_t batches = argc > 1 ? std::atoll(argv[1]) : 1000;
  measure("none", batches, std::tuple<>());
  measure("sixteen", batches, sixteen(std::make_integer_sequence<int, 16>()));
  measure("one of sixteen", batches, one_of_sixteen(std::make_integer_sequence<int, 7>()));
}
