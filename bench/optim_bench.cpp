// The step of one optimizer, of fulmen or of torch::optim, on one set of tensors: measured whenever a line comes in.
// bench/optim.py starts one for each peer and asks them in turn.
#include <fulmen/fulmen.hpp>

#include <torch/torch.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <string>
#include <string_view>
#include <vector>

namespace {

/// Sets of shapes: a small MLP, many small tensors, one large tensor.
std::vector<std::vector<std::int64_t>> shapes_of(std::string_view set) {
  if (set == "mlp") return {{64, 784}, {64}, {10, 64}, {10}};
  if (set == "micro") return {{8, 4}, {8}, {2, 8}, {2}};
  if (set == "200 small") return std::vector<std::vector<std::int64_t>>(200, {8, 8});
  if (set == "100 M") return {{10'000, 10'000}};
  std::fprintf(stderr, "optim_bench: no set of tensors '%s'\n", std::string(set).c_str());
  std::exit(2);
}

fulmen::NamedParameters make_parameters(std::string_view set) {
  fulmen::NamedParameters out;
  for (const auto& shape : shapes_of(set)) {
    at::Tensor p = at::randn(shape).requires_grad_(true);
    p.mutable_grad() = at::randn(shape);
    out.push_back({std::to_string(out.size()), p});
  }
  return out;
}

/// Answers each line "<steps>" with the nanoseconds that a step took.
template <class Step>
int serve(const Step& step) {
  step();  // makes the state
  std::puts("ready"), std::fflush(stdout);
  for (std::string line; std::getline(std::cin, line);) {
    const int steps = std::atoi(line.c_str());
    const auto begin = std::chrono::steady_clock::now();
    for (int i = 0; i < steps; ++i) step();
    const std::chrono::duration<double, std::nano> spent = std::chrono::steady_clock::now() - begin;
    std::printf("%.1f\n", spent.count() / steps), std::fflush(stdout);
  }
  return 0;
}

template <class Policy>
int fulmen_peer(const Policy& policy, std::string_view set) {
  auto optimizer = policy.bind(make_parameters(set));
  return serve([&] { optimizer.step(); });
}

template <class Optimizer, class Options>
int torch_peer(const Options& options, std::string_view set) {
  std::vector<at::Tensor> parameters;
  for (const fulmen::NamedParameter& p : make_parameters(set)) parameters.push_back(p.tensor);
  Optimizer optimizer(parameters, options);
  return serve([&] { optimizer.Optimizer::step(); });
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) {
    std::fprintf(stderr, "optim_bench PEER OPTIMIZER SET THREADS, PEER: fulmen, torch::optim; SET: micro, mlp, '200 small', '100 M'\n");
    return 2;
  }
  const std::string_view peer = argv[1], name = argv[2], set = argv[3];
  at::set_num_threads(std::atoi(argv[4]));
  torch::manual_seed(0);
  using namespace torch::optim;
  if (peer == "fulmen") {
    if (name == "SGD") return fulmen_peer(fulmen::SGD{.momentum = 0.9}, set);
    if (name == "Adam") return fulmen_peer(fulmen::Adam{}, set);
    if (name == "AdamW") return fulmen_peer(fulmen::AdamW{}, set);
    if (name == "NAdam") return fulmen_peer(fulmen::NAdam{}, set);
    if (name == "RAdam") return fulmen_peer(fulmen::RAdam{}, set);
    if (name == "Adamax") return fulmen_peer(fulmen::Adamax{}, set);
    if (name == "Adadelta") return fulmen_peer(fulmen::Adadelta{}, set);
    if (name == "Adagrad") return fulmen_peer(fulmen::Adagrad{}, set);
    if (name == "RMSprop") return fulmen_peer(fulmen::RMSprop{}, set);
    if (name == "Rprop") return fulmen_peer(fulmen::Rprop{}, set);
    if (name == "ASGD") return fulmen_peer(fulmen::ASGD{}, set);
    if (name == "Adafactor") return fulmen_peer(fulmen::Adafactor{}, set);
    if (name == "Lion") return fulmen_peer(fulmen::Lion{}, set);
    if (name == "Muon" && (set == "200 small" || set == "100 M")) return fulmen_peer(fulmen::Muon{}, set);
  } else if (peer == "torch::optim") {
    if (name == "SGD") return torch_peer<SGD>(SGDOptions(1e-3).momentum(0.9), set);
    if (name == "Adam") return torch_peer<Adam>(AdamOptions(), set);
    if (name == "AdamW") return torch_peer<AdamW>(AdamWOptions(), set);
    if (name == "Adagrad") return torch_peer<Adagrad>(AdagradOptions(), set);
    if (name == "RMSprop") return torch_peer<RMSprop>(RMSpropOptions(), set);
  }
  return 3;  // this peer has no such optimizer
}
