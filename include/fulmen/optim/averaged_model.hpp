// Averages of a module's weights along training: stochastic weight averaging (SWA) and exponential moving averages
// (EMA).
#pragma once

#include <fulmen/checkpoint/state.hpp>
#include <fulmen/compiled.hpp>
#include <fulmen/data/batch.hpp>
#include <fulmen/error.hpp>

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_foreach_lerp.h>
#include <ATen/ops/scalar_tensor.h>
#include <torch/nn/module.h>
#include <torch/nn/modules/batchnorm.h>

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#if FULMEN_BODIES
#include <fulmen/checkpoint/module_state.hpp>
#include <fulmen/shape_text.hpp>

#include <unordered_map>
#include <unordered_set>
#endif

namespace fulmen {

/// All weights count the same: SWA. Source: torch.optim.swa_utils.get_swa_multi_avg_fn.
struct EqualAverage {
  double operator()(std::int64_t n_averaged) const { return 1.0 / static_cast<double>(n_averaged + 1); }
};

/// The average moves by 1 - decay of the way to each new weight: EMA. Source:
/// torch.optim.swa_utils.get_ema_multi_avg_fn.
struct ExponentialAverage {
  double decay = 0.999;
  /// Begin with a decay of (1 + n) / (10 + n), n being the number of updates, until it reaches `decay`: early
  /// averages forget the first weights sooner. (As TensorFlow's ExponentialMovingAverage with num_updates; PyTorch
  /// has no such option.)
  bool warmup = false;

  double operator()(std::int64_t n_averaged) const {
    const double n = static_cast<double>(n_averaged);
    return 1 - (warmup ? std::min(decay, (1 + n) / (10 + n)) : decay);
  }
};

/// How an AveragedModel averages: called with the number of weights averaged so far (1 or more), gives the part of
/// the way from the average to the new weight that the average goes.
template <class A>
concept Average = std::copy_constructible<A> && std::is_invocable_r_v<double, const A&, std::int64_t>;

struct AveragedModelOptions {
  bool use_buffers = false;            ///< average the buffers, too; else they are copied from the model
  std::optional<at::Device> device{};  ///< where the average is kept; the model's own unless given
};

namespace detail {

/// A module's parameters and buffers, each once, and all names that they have.
struct ModuleTensors {
  std::vector<std::pair<std::string, std::size_t>> names;
  std::vector<at::Tensor> tensors;
  std::vector<bool> is_buffer;

  explicit ModuleTensors(const torch::nn::Module& module);

  /// The tensors of a module that is made alike. @throws std::runtime_error naming what differs
  std::vector<at::Tensor> of(const torch::nn::Module& model) const;
};

void check_shape(const std::string& name, const at::Tensor& found, const at::Tensor& expected);

}  // namespace detail

/// An average of a module's parameters, beside it:
///
///   fulmen::AveragedModel average(net, fulmen::ExponentialAverage{.decay = 0.99});
///   average.update_parameters(net);  // after each step (EMA) or epoch (SWA)
///   average.swap(net);               // net has the average now, until it is swapped back
///   fulmen::update_bn(train, net);
///
/// Averages, options and state: torch.optim.swa_utils.AveragedModel. The average is no module of its own (LibTorch's
/// modules cannot be copied in general): swap() or copy_to() bring it into one.
template <Average A = EqualAverage>
class AveragedModel {
 public:
  /// @throws std::invalid_argument if a decay is not between 0 and 1
  explicit AveragedModel(const torch::nn::Module& model, A average = {}, AveragedModelOptions options = {});

  std::int64_t n_averaged() const { return n_averaged_; }

  /// Takes the model's weights into the average; the first time it becomes their copy.
  /// @throws std::runtime_error if the model is not made like the one that the average was made for
  void update_parameters(const torch::nn::Module& model);

  /// Writes the average into the model.
  void copy_to(torch::nn::Module& model) const;
  /// Exchanges the model's weights and the average; a second call exchanges them back.
  void swap(torch::nn::Module& model);

  /// "n_averaged" and "module.<name>", as in Python. The tensors share the average's memory.
  State state_dict() const;
  /// @throws std::runtime_error naming what is missing or has another shape; then nothing has been changed
  void load_state_dict(const State& state);

 private:
  A average_;
  AveragedModelOptions options_;
  detail::ModuleTensors own_;
  std::int64_t n_averaged_ = 0;
};

template <Average A>
AveragedModel<A>::AveragedModel(const torch::nn::Module& model, A average, AveragedModelOptions options)
    : average_(std::move(average)), options_(options), own_(model) {
  if constexpr (std::same_as<A, ExponentialAverage>) {
    if (!(average_.decay >= 0 && average_.decay <= 1)) {
      fail<std::invalid_argument>("ExponentialAverage::decay is {}, expected 0 to 1", average_.decay);
    }
  }
  for (at::Tensor& tensor : own_.tensors)
    tensor = tensor.to(options_.device.value_or(tensor.device())).clone();
}

template <Average A>
void AveragedModel<A>::update_parameters(const torch::nn::Module& model) {
  const at::NoGradGuard no_grad;
  const std::vector<at::Tensor> current = own_.of(model);
  const double weight = n_averaged_ == 0 ? 1.0 : static_cast<double>(std::as_const(average_)(n_averaged_));
  std::vector<at::Tensor> averages, news;
  for (std::size_t i = 0; i < current.size(); ++i) {
    at::Tensor& own = own_.tensors[i];
    if (n_averaged_ == 0 || (own_.is_buffer[i] && !options_.use_buffers)) {
      own.copy_(current[i]);
    } else if (own.is_floating_point() || own.is_complex()) {
      averages.push_back(own);
      news.push_back(current[i].to(own.device()));
    } else {
      // A counter among the buffers. PyTorch, too, cuts off what is behind the point.
      own.copy_(own + (current[i].to(own.device()) - own) * weight);
    }
  }
  if (!averages.empty()) at::_foreach_lerp_(averages, news, weight);
  ++n_averaged_;
}

template <Average A>
void AveragedModel<A>::copy_to(torch::nn::Module& model) const {
  const at::NoGradGuard no_grad;
  const std::vector<at::Tensor> into = own_.of(model);
  for (std::size_t i = 0; i < into.size(); ++i) into[i].copy_(own_.tensors[i]);
}

template <Average A>
void AveragedModel<A>::swap(torch::nn::Module& model) {
  const at::NoGradGuard no_grad;
  const std::vector<at::Tensor> theirs = own_.of(model);
  for (std::size_t i = 0; i < theirs.size(); ++i) {
    const at::Tensor kept = theirs[i].clone();
    theirs[i].copy_(own_.tensors[i]);
    own_.tensors[i].copy_(kept);
  }
}

template <Average A>
State AveragedModel<A>::state_dict() const {
  State state("AveragedModel");
  state.set("n_averaged", at::scalar_tensor(n_averaged_, at::kLong));
  for (const auto& [name, i] : own_.names) state.set("module." + name, own_.tensors[i]);
  return state;
}

template <Average A>
void AveragedModel<A>::load_state_dict(const State& state) {
  const at::NoGradGuard no_grad;
  const auto n_averaged = state.get<at::Tensor>("n_averaged").item<std::int64_t>();
  std::vector<at::Tensor> loaded(own_.tensors.size());
  for (const auto& [name, i] : own_.names) {
    loaded[i] = state.get<at::Tensor>("module." + name);
    detail::check_shape(name, loaded[i], own_.tensors[i]);
  }
  for (std::size_t i = 0; i < loaded.size(); ++i) own_.tensors[i].copy_(loaded[i]);
  n_averaged_ = n_averaged;
}

FULMEN_INSTANTIATE(class AveragedModel<EqualAverage>);
FULMEN_INSTANTIATE(class AveragedModel<ExponentialAverage>);

namespace detail {

/// Lets the BatchNorm layers of a module average over all that they see from now on; gives them back their momentum,
/// and each layer its mode, when it goes.
class BatchNormReset {
 public:
  explicit BatchNormReset(torch::nn::Module& model);
  BatchNormReset(const BatchNormReset&) = delete;
  BatchNormReset& operator=(const BatchNormReset&) = delete;
  ~BatchNormReset();

  bool empty() const { return momenta_.empty(); }

 private:
  template <class BatchNorm>
  void add(BatchNorm* norm) {
    if (!norm) return;
    norm->reset_running_stats();
    momenta_.emplace_back(&norm->options, norm->options.momentum());
    norm->options.momentum(std::nullopt);
  }

  std::vector<std::pair<torch::nn::Module*, bool>> modes_;
  std::vector<std::pair<torch::nn::BatchNormOptions*, std::optional<double>>> momenta_;
};

}  // namespace detail

/// Makes the running statistics of a module's BatchNorm layers anew, from one pass over a loader: after the weights
/// have become an average, those of training do not fit them any more. A batch's first member goes to forward.
/// Without such a layer it does nothing. Afterwards each layer is in training or evaluation mode as before.
/// @param device where the batches go; they stay where they are unless given
/// @param batches how many of the loader's are used; all unless given
/// Source: torch.optim.swa_utils.update_bn.
template <class Loader, std::derived_from<torch::nn::Module> Module>
void update_bn(Loader&& loader, Module& model, std::optional<at::Device> device = std::nullopt,
               std::optional<std::int64_t> batches = std::nullopt) {
  const at::NoGradGuard no_grad;
  const detail::BatchNormReset reset(model);
  if (reset.empty()) return;
  std::int64_t done = 0;
  for (auto&& batch : loader) {
    if (batches && done++ == *batches) break;
    at::Tensor input = std::get<0>(members(batch));
    model.forward(device ? input.to(*device) : input);
  }
}

#if FULMEN_BODIES
namespace detail {

FULMEN_INLINE ModuleTensors::ModuleTensors(const torch::nn::Module& module) {
  std::unordered_set<const void*> parameters;
  for (const at::Tensor& parameter : module.parameters()) parameters.insert(parameter.unsafeGetTensorImpl());
  std::unordered_map<const void*, std::size_t> places;
  const auto visit = [&](const std::string& name, const at::Tensor& tensor) {
    const auto [place, is_new] = places.try_emplace(tensor.unsafeGetTensorImpl(), tensors.size());
    names.emplace_back(name, place->second);
    if (!is_new) return;
    tensors.push_back(tensor.detach());
    is_buffer.push_back(!parameters.contains(tensor.unsafeGetTensorImpl()));
  };
  for_each_module_tensor(module, "", visit);
}

FULMEN_INLINE BatchNormReset::BatchNormReset(torch::nn::Module& model) {
  // modules() would need the model itself to be in a shared_ptr.
  std::vector<torch::nn::Module*> all{&model};
  for (const auto& module : model.modules(/*include_self=*/false)) all.push_back(module.get());
  for (torch::nn::Module* module : all) {
    modes_.emplace_back(module, module->is_training());
    add(module->as<torch::nn::BatchNorm1dImpl>());
    add(module->as<torch::nn::BatchNorm2dImpl>());
    add(module->as<torch::nn::BatchNorm3dImpl>());
  }
  if (!empty()) model.train();
}

FULMEN_INLINE BatchNormReset::~BatchNormReset() {
  for (const auto& [options, momentum] : momenta_) options->momentum(momentum);
  if (empty()) return;
  for (const auto& [module, training] : modes_)
    module->train(training);  // those inside come after their parents
}

FULMEN_INLINE void check_shape(const std::string& name, const at::Tensor& found, const at::Tensor& expected) {
  if (found.sizes().equals(expected.sizes())) return;
  fail("AveragedModel: '{}' has shape {}, expected {}", name, shape_text(found.sizes()),
       shape_text(expected.sizes()));
}

FULMEN_INLINE std::vector<at::Tensor> ModuleTensors::of(const torch::nn::Module& model) const {
  ModuleTensors theirs(model);
  if (theirs.names.size() != names.size() || theirs.tensors.size() != tensors.size()) {
    fail("AveragedModel: the model has {} parameters and buffers, expected {}", theirs.names.size(),
         names.size());
  }
  for (std::size_t k = 0; k < names.size(); ++k) {
    const auto& [name, i] = names[k];
    const auto& [their_name, j] = theirs.names[k];
    if (their_name != name || j != i)
      fail("AveragedModel: the model has '{}', expected '{}'", their_name, name);
    check_shape(name, theirs.tensors[i], tensors[i]);
  }
  return std::move(theirs.tensors);
}

}  // namespace detail
#endif

}  // namespace fulmen
