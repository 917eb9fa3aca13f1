// TorchOptimizer: any class of torch::optim as an optimizer policy; the way to LBFGS and its closure.
#pragma once

#include <fulmen/optim/optimizer.hpp>

#include <ATen/ops/empty.h>
#include <torch/optim/optimizer.h>
#include <torch/serialize/input-archive.h>
#include <torch/serialize/output-archive.h>

#include <cstring>
#include <functional>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

namespace fulmen {

namespace detail {

template <class Optimizer, class Options>
class BoundTorchOptimizer {
 public:
  BoundTorchOptimizer(NamedParameters parameters, const Options& options)
      : groups_(make_groups(std::move(parameters), options.get_lr())), optimizer_(groups_[0].params, options) {}

  std::vector<ParamGroup>& groups() { return groups_; }
  const std::vector<ParamGroup>& groups() const { return groups_; }
  void zero_grad() { optimizer_.Optimizer::zero_grad(); }

  // Qualified calls: on the concrete class, not through its vtable.
  void step() {
    set_rate();
    optimizer_.Optimizer::step();
  }
  /// The closure makes the gradients and returns the loss; LBFGS calls it several times a step.
  template <class Closure>
  void step(Closure& closure) {
    set_rate();
    optimizer_.Optimizer::step(std::ref(closure));
  }

  /// torch::optim's own archive, as bytes: for fulmen, not for Python.
  State state_dict() const {
    torch::serialize::OutputArchive archive;
    optimizer_.save(archive);
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
    optimizer_.load(archive);
    groups_[0].lr = state.get<double>("lr");
    groups_[0].initial_lr = state.get<double>("initial_lr");
  }

 private:
  static std::vector<ParamGroup> make_groups(NamedParameters parameters, double lr) {
    std::vector<ParamGroup> groups(1);
    groups[0].lr = groups[0].initial_lr = lr;
    for (NamedParameter& p : parameters) groups[0].params.push_back(std::move(p.tensor));
    return groups;
  }
  /// Schedulers write to our group; torch's reads its own.
  void set_rate() {
    for (auto& group : optimizer_.param_groups()) group.options().set_lr(groups_[0].lr);
  }

  std::vector<ParamGroup> groups_;
  Optimizer optimizer_;
};

}  // namespace detail

/// `TorchOptimizer<torch::optim::LBFGS, torch::optim::LBFGSOptions>{torch::optim::LBFGSOptions(0.5)}`. Slower than the
/// policies of this library where there is one for the same optimizer: torch::optim goes parameter by parameter.
template <class Optimizer, class Options>
struct TorchOptimizer {
  Options options;

  detail::BoundTorchOptimizer<Optimizer, Options> bind(NamedParameters parameters) const {
    return {std::move(parameters), options};
  }
};

}  // namespace fulmen
