// BackboneFinetuning: trains a head on a frozen backbone first, then both, the backbone with a rate of its
// own.
#pragma once

#include <fulmen/checkpoint/state.hpp>
#include <fulmen/compiled.hpp>
#include <fulmen/loop/context.hpp>
#include <fulmen/optim/optimizer.hpp>
#include <fulmen/optim/param_groups.hpp>

#include <torch/nn/module.h>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#if FULMEN_BODIES
#include <fulmen/callbacks/batch_norm.hpp>
#include <fulmen/error.hpp>

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <stdexcept>
#endif

namespace fulmen {

namespace detail {

/// Names of parameters of one submodule.
struct InSubmodule {
  std::string submodule;
  bool operator()(std::string_view name) const {
    return name.size() > submodule.size() && name.starts_with(submodule) && name[submodule.size()] == '.';
  }
};

inline double doubled(std::int64_t) { return 2; }

/// Which of an optimizer's groups are a backbone's, and the first that is not.
struct BackboneGroups {
  std::vector<std::size_t> backbone;
  std::size_t head = 0;
  std::vector<at::Tensor> batch_norm;  // parameters of its BatchNorm layers
};
BackboneGroups find_backbone(const torch::nn::Module& module, const std::string& name,
                             const std::vector<ParamGroup>& groups);
void set_trained(const BackboneGroups& where, const std::vector<ParamGroup>& groups, bool trained,
                 bool train_bn);
void tell_rates(double others, double backbone);

}  // namespace detail

/// An optimizer with a parameter group for a backbone, as BackboneFinetuning needs it:
/// `with_backbone("backbone", AdamW{.lr = 1e-3})`.
/// @param submodule its registered name; with dots for one inside another
template <OptimizerPolicy Policy>
ParamGroups<Policy, detail::InSubmodule> with_backbone(std::string submodule, Policy policy) {
  return param_groups(policy, group(detail::InSubmodule{std::move(submodule)}, policy));
}

/// The backbone is frozen until an epoch, from which on it is trained with a rate that grows to that of the
/// other parameters:
///
///   Trainer{net, criterion, with_backbone("backbone", AdamW{}), none, Identity{},
///           callbacks(BackboneFinetuning{.unfreeze_backbone_at_epoch = 5})}
///
/// Its BatchNorm layers see the data in training mode all the time, as in Lightning. The optimizer must have
/// the backbone's parameters in groups of their own. A scheduler does not move their rate; the other groups
/// are its own. (Lightning's initial_denom_lr is not here: it has no effect there.)
/// @tparam Factor what lambda_func is: a function pointer, which a lambda without captures becomes, unless
/// said otherwise Source: lightning.pytorch.callbacks.BackboneFinetuning.
template <std::invocable<std::int64_t> Factor>
struct BackboneFinetuningBy {
  std::int64_t unfreeze_backbone_at_epoch = 10;  ///< index of the first epoch that trains it
  Factor lambda_func =
      detail::doubled;  ///< of the epoch's index plus one: what the backbone's rate is multiplied with
  double backbone_initial_ratio_lr =
      0.1;  ///< the backbone's first rate, as a part of the other parameters' rate then
  std::optional<double> backbone_initial_lr{};  ///< or the rate itself
  bool should_align = true;           ///< the backbone's rate does not exceed that of the other parameters
  bool train_bn = true;               ///< whether the parameters of its BatchNorm layers are trained, too
  bool verbose = false;               ///< a line on stderr with the rates of each epoch from then on
  std::string backbone = "backbone";  ///< registered name of the submodule; with dots for one inside another

  std::optional<double>
      previous_backbone_lr{};  ///< the backbone's rate in the running epoch; nothing while it is frozen

  /// @throws std::invalid_argument if there is no such submodule, or the optimizer has no group for it alone
  template <class Ctx>
  void on_fit_start(Ctx& ctx) {
    static_assert(std::tuple_size_v<typename Ctx::Optimizers> == 1,
                  "fulmen: BackboneFinetuning needs one optimizer");
    const std::vector<ParamGroup>& groups = ctx.optimizer().groups();
    groups_ = detail::find_backbone(ctx.module(), backbone, groups);
    detail::set_trained(groups_, groups, ctx.epoch() >= unfreeze_backbone_at_epoch, train_bn);
  }
  void on_train_epoch_start(auto& ctx) {
    if (ctx.epoch() < unfreeze_backbone_at_epoch) return;
    std::vector<ParamGroup>& groups = ctx.optimizer().groups();
    const double others = groups[groups_.head].lr;
    if (!previous_backbone_lr) {
      detail::set_trained(groups_, groups, true, train_bn);
      previous_backbone_lr = backbone_initial_lr.value_or(others * backbone_initial_ratio_lr);
    } else {
      const double next = static_cast<double>(lambda_func(ctx.epoch() + 1)) * *previous_backbone_lr;
      previous_backbone_lr = should_align && next > others ? others : next;
    }
    hold(groups);
    if (verbose) detail::tell_rates(others, *previous_backbone_lr);
  }
  // A scheduler that advances with the steps may have moved the rate.
  void on_train_batch_start(auto& ctx) {
    if (previous_backbone_lr) hold(ctx.optimizer().groups());
  }

  State state_dict() const {
    return State("BackboneFinetuning").set("previous_backbone_lr", previous_backbone_lr);
  }
  void load_state_dict(const State& state) {
    previous_backbone_lr = state.get<std::optional<double>>("previous_backbone_lr");
  }

  detail::BackboneGroups groups_{};  // public only because aggregates have no private members

 private:
  void hold(std::vector<ParamGroup>& groups) const {
    for (const std::size_t i : groups_.backbone) groups[i].lr = *previous_backbone_lr;
  }
};
using BackboneFinetuning = BackboneFinetuningBy<double (*)(std::int64_t)>;

#if FULMEN_BODIES

FULMEN_INLINE detail::BackboneGroups detail::find_backbone(const torch::nn::Module& module,
                                                           const std::string& name,
                                                           const std::vector<ParamGroup>& groups) {
  BackboneGroups out;
  std::vector<const void*> parameters;
  const InSubmodule inside{name};
  for (const auto& parameter : module.named_parameters()) {
    if (inside(parameter.key())) parameters.push_back(parameter.value().unsafeGetTensorImpl());
  }
  if (parameters.empty()) {
    fail<std::invalid_argument>(
        "BackboneFinetuning::backbone is '{}', expected the name of a submodule with parameters", name);
  }
  std::optional<std::size_t> head;
  for (std::size_t i = 0; i < groups.size(); ++i) {
    const auto count =
        std::count_if(groups[i].params.begin(), groups[i].params.end(), [&](const at::Tensor& p) {
          return std::find(parameters.begin(), parameters.end(), p.unsafeGetTensorImpl()) != parameters.end();
        });
    if (count == 0) {
      if (!head && !groups[i].params.empty()) head = i;
    } else if (count == static_cast<std::ptrdiff_t>(groups[i].params.size())) {
      out.backbone.push_back(i);
    } else {
      fail<std::invalid_argument>(
          "BackboneFinetuning: parameter group {} of the optimizer has parameters of '{}' and others; "
          "give them a group of their own: with_backbone(\"{}\", optimizer)",
          i + 1, name, name);
    }
  }
  if (!head || out.backbone.empty()) {
    fail<std::invalid_argument>(
        "BackboneFinetuning: the optimizer has {}, expected parameters of '{}' and others",
        head ? "no parameter of '" + name + "'" : "parameters of '" + name + "' only", name);
  }
  out.head = *head;
  const auto look = [&](const std::string& path, const torch::nn::Module& child) {
    if (path != name && !inside(path)) return;
    if (is_batch_norm(child)) {
      for (const at::Tensor& p : child.parameters(/*recurse=*/false)) out.batch_norm.push_back(p);
    }
  };
  for (const auto& child : module.named_modules("", /*include_self=*/false))
    look(child.key(), *child.value());
  return out;
}

FULMEN_INLINE void detail::set_trained(const BackboneGroups& where, const std::vector<ParamGroup>& groups,
                                       bool trained, bool train_bn) {
  for (const std::size_t i : where.backbone) {
    for (const at::Tensor& p : groups[i].params) p.requires_grad_(trained);
  }
  if (train_bn) return;
  for (const at::Tensor& p : where.batch_norm) p.requires_grad_(false);
}

FULMEN_INLINE void detail::tell_rates(double others, double backbone) {
  fmt::print(stderr, "BackboneFinetuning: the rate is {:.12g}, the backbone's is {:.12g}\n", others,
             backbone);
}

#endif

}  // namespace fulmen
