// TorchOptimizer: any class of torch::optim as an optimizer policy.
#pragma once

#include <fulmen/optim/optimizer.hpp>

#include <ATen/ops/empty.h>
#include <torch/optim/lbfgs.h>
#include <torch/optim/optimizer.h>
#include <torch/serialize/input-archive.h>
#include <torch/serialize/output-archive.h>

#include <cstring>
#include <functional>
#include <optional>
#include <sstream>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

namespace fulmen {

namespace detail {

template <class Optimizer, class Options>
class BoundTorchOptimizer {
 public:
  BoundTorchOptimizer(NamedParameters parameters, const Options& options)
      : groups_(make_groups(std::move(parameters), options.get_lr())),
        optimizer_(groups_[0].params, options) {
    groups_[0].momentum = momentum_of(own_options());
  }

  std::vector<ParamGroup>& groups() { return groups_; }
  const std::vector<ParamGroup>& groups() const { return groups_; }
  void zero_grad() { optimizer_.Optimizer::zero_grad(); }

  // Qualified calls: on the concrete class, not through its vtable.
  void step() {
    write_options();
    optimizer_.Optimizer::step();
  }
  /// The closure makes the gradients and returns the loss; LBFGS calls it several times a step.
  template <class Closure>
  void step(Closure& closure) {
    write_options();
    optimizer_.Optimizer::step(std::ref(closure));
  }

  /// torch::optim's own archive, as bytes: for fulmen, not for Python.
  State state_dict() const {
    if constexpr (std::is_base_of_v<torch::optim::LBFGS, Optimizer>) {
      // A list that the first pass through its history fills; LibTorch cannot save the undefined tensors in
      // it.
      for (const auto& [parameter, state] : optimizer_.state()) {
        static_cast<torch::optim::LBFGSParamState&>(*state).al(std::nullopt);
      }
    }
    torch::serialize::OutputArchive archive;
    optimizer_.Optimizer::save(archive);
    std::ostringstream out;
    archive.save_to(out);
    const std::string bytes = std::move(out).str();
    at::Tensor tensor = at::empty({static_cast<std::int64_t>(bytes.size())}, at::TensorOptions(at::kByte));
    std::memcpy(tensor.mutable_data_ptr<std::uint8_t>(), bytes.data(), bytes.size());
    State state("torch::optim");
    state.set("archive", tensor).set("lr", groups_[0].lr).set("initial_lr", groups_[0].initial_lr);
    return state;
  }
  void load_state_dict(const State& state) {
    const at::Tensor tensor = state.get<at::Tensor>("archive").contiguous();
    std::istringstream in(std::string(reinterpret_cast<const char*>(tensor.const_data_ptr<std::uint8_t>()),
                                      static_cast<std::size_t>(tensor.numel())));
    torch::serialize::InputArchive archive;
    archive.load_from(in);
    optimizer_.Optimizer::load(archive);
    groups_[0].lr = state.get<double>("lr");
    groups_[0].initial_lr = state.get<double>("initial_lr");
    groups_[0].momentum = momentum_of(own_options());
  }

 private:
  static std::vector<ParamGroup> make_groups(NamedParameters parameters, double lr) {
    std::vector<ParamGroup> groups(1);
    groups[0].lr = groups[0].initial_lr = lr;
    for (NamedParameter& p : parameters) groups[0].params.push_back(std::move(p.tensor));
    return groups;
  }
  Options& own_options() { return static_cast<Options&>(optimizer_.param_groups()[0].options()); }

  static std::optional<double> momentum_of(const Options& options) {
    if constexpr (requires { std::get<0>(options.betas()); })
      return std::get<0>(options.betas());
    else if constexpr (requires { options.momentum(); })
      return options.momentum();
    else
      return std::nullopt;
  }
  /// Schedulers write to our group; torch's reads its own.
  void write_options() {
    Options& options = own_options();
    options.set_lr(groups_[0].lr);
    if constexpr (requires { std::get<0>(options.betas()); }) {
      options.betas(
          {groups_[0].momentum.value_or(std::get<0>(options.betas())), std::get<1>(options.betas())});
    } else if constexpr (requires { options.momentum(); }) {
      options.momentum(groups_[0].momentum.value_or(options.momentum()));
    }
  }

  std::vector<ParamGroup> groups_;
  Optimizer optimizer_;
};

}  // namespace detail

/// `TorchOptimizer<torch::optim::Adagrad, torch::optim::AdagradOptions>{torch::optim::AdagradOptions(0.5)}`,
/// and classes of your own that derive from torch::optim::Optimizer. Slower than the policies of this library
/// where there is one for the same optimizer: torch::optim goes parameter by parameter. One parameter group;
/// the state dict is for fulmen, not for Python.
template <class Optimizer, class Options>
struct TorchOptimizer {
  Options options;

  detail::BoundTorchOptimizer<Optimizer, Options> bind(NamedParameters parameters) const {
    return {std::move(parameters), options};
  }
};

}  // namespace fulmen
