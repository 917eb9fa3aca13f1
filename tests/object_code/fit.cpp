// A program that only trains, for the object-code test: without callbacks, with one that has no hooks, with one whose only hook
// belongs to a stage that does not run. CALLBACK says which. Each is an object of its own: in one, the compiler's limits to inlining
// would be used up by the first.
#include <fulmen/criteria/criteria.hpp>
#include <fulmen/optim/sgd.hpp>
#include <fulmen/profile/simple.hpp>
#include <fulmen/trainer.hpp>
#include <tuple>
#include <utility>
#include <vector>

using Batches = std::vector<std::pair<at::Tensor, at::Tensor>>;

struct Net : torch::nn::Module {
  at::Tensor forward(const at::Tensor& x) { return x; }
};

struct Silent {};

struct Validated {
  [[gnu::noinline]] void on_validation_end(fulmen::Context& ctx) { ctx.request_stop(); }
};

#ifdef EVALUATE
// The control: with these, the test must find all that it does not find otherwise.
struct Counting {
  int calls = 0;  // used, so that the compiler makes no clone of the member under another name
  [[gnu::noinline]] void on_train_batch_end(fulmen::Context& ctx) {
    if (++calls > 1) ctx.request_stop();
  }
};

void fit_counting(Batches& train) {
  fulmen::Trainer trainer{Net{},        fulmen::MSE{},      fulmen::SGD{},
                          fulmen::none, fulmen::Identity{}, std::tuple<Counting>{},
                          {},           fulmen::barebones};
  trainer.fit(train);
}

void fit_measured(Batches& train) {
  fulmen::Trainer trainer{Net{},        fulmen::MSE{},      fulmen::SGD{},
                          fulmen::none, fulmen::Identity{}, std::tuple<>{},
                          {},           fulmen::barebones.with_profiler(fulmen::SimpleProfiler{})};
  trainer.fit(train);
}

void evaluate(Batches& data) {
  fulmen::Trainer trainer{Net{},        fulmen::MSE{},      fulmen::SGD{},
                          fulmen::none, fulmen::Identity{}, std::tuple<Validated>{},
                          {},           fulmen::barebones};
  trainer.fit(data, data);
  trainer.test(data);
  (void)trainer.predict(data);
}
#else
void fit(Batches& train) {
  fulmen::Trainer trainer{Net{},        fulmen::MSE{},      fulmen::SGD{},
                          fulmen::none, fulmen::Identity{}, std::tuple<CALLBACK>{},
                          {},           fulmen::barebones};
  trainer.fit(train);
}
#endif
