// ModelSummary: the table of layers, types and parameters that fit prints before it starts.
#pragma once

#include <fulmen/compiled.hpp>
#include <fulmen/loop/context.hpp>

#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#if FULMEN_BODIES
#include <fulmen/error.hpp>
#include <fulmen/terminal/table.hpp>
#include <fulmen/terminal/terminal.hpp>

#include <torch/nn/module.h>

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>
#include <unordered_set>
#else
// Enough to pass one on. Its header includes TorchScript's, and takes longer to read than the rest of this one's includes.
namespace torch::nn {
class Module;
}
#endif

namespace fulmen {

/// A row of a ModuleSummary.
struct LayerSummary {
  std::string name;  ///< with dots for one inside another
  std::string type;  ///< as in Python: Conv2d for torch::nn::Conv2dImpl
  std::int64_t num_parameters;
  bool training;

  bool operator==(const LayerSummary&) const = default;
};

/// What a module consists of. Parameters and layers that are registered twice count once.
struct ModuleSummary {
  std::vector<LayerSummary> layers;
  std::int64_t trainable_parameters = 0;
  std::int64_t total_parameters = 0;
  std::int64_t other_parameters = 0;  ///< of the total, those of none of the layers
  std::uint64_t size = 0;             ///< bytes of all parameters
  std::int64_t modules_in_train_mode = 0, modules_in_eval_mode = 0;  ///< without the module itself

  /// The table and its totals as lines, for what `out` can show.
  std::string render(std::FILE* out = stdout) const;
};

/// @param max_depth how deep layers are listed: 1 for the module's own, -1 for all, 0 for none
/// @throws std::invalid_argument if max_depth is below -1
ModuleSummary summarize(const torch::nn::Module& module, int max_depth = 1);

/// Prints name, type, parameters and mode of the module's layers down to `max_depth`, and the totals, when fit begins.
/// Not printed where Options::enable_model_summary is off or max_depth is 0. Source:
/// lightning.pytorch.callbacks.ModelSummary. (Sizes in and out and FLOPs are not here: modules of LibTorch have no hooks
/// by which to learn them.)
struct ModelSummary {
  int max_depth = 1;  ///< -1: all layers
  std::FILE* out = stdout;

  /// @throws std::invalid_argument if max_depth is below -1
  template <class Ctx>
  void on_fit_start(Ctx& ctx) {
    if (ctx.options().enable_model_summary) print(ctx.module());
  }

  void print(const torch::nn::Module& module) const;
};

#if FULMEN_BODIES

namespace detail {

/// `torch::nn::Conv2dImpl` is called Conv2d, as in Python.
inline std::string layer_type(const torch::nn::Module& module) {
  std::string name = module.name();
  name.resize(std::min(name.find('<'), name.size()));
  if (const auto colon = name.rfind("::"); colon != std::string::npos) name.erase(0, colon + 2);
  if (name.size() > 4 && name.ends_with("Impl")) name.resize(name.size() - 4);
  return name;
}

/// Calls `f` with each parameter once.
template <class F>
void each_parameter(const torch::nn::Module& module, F&& f) {
  std::unordered_set<const void*> seen;
  for (const at::Tensor& p : module.parameters()) {
    if (p.defined() && seen.insert(p.unsafeGetTensorImpl()).second) f(p);
  }
}

inline void add_layers(ModuleSummary& out, const torch::nn::Module& module, const std::string& prefix, int depth,
                       std::unordered_set<const void*>& seen) {
  for (const auto& child : module.named_children()) {
    if (!seen.insert(child.value().get()).second) continue;
    const std::string name = prefix + child.key();
    ++(child.value()->is_training() ? out.modules_in_train_mode : out.modules_in_eval_mode);
    if (depth != 0) {
      std::int64_t count = 0;
      each_parameter(*child.value(), [&](const at::Tensor& p) { count += p.numel(); });
      out.layers.push_back({name, layer_type(*child.value()), count, child.value()->is_training()});
    }
    add_layers(out, *child.value(), name + ".", depth > 0 ? depth - 1 : depth, seen);
  }
}

}  // namespace detail

FULMEN_INLINE ModuleSummary summarize(const torch::nn::Module& module, int max_depth) {
  if (max_depth < -1) {
    fail<std::invalid_argument>("ModelSummary::max_depth is {}, expected -1 for all layers, 0 for none, or more",
                                max_depth);
  }
  ModuleSummary out;
  std::unordered_set<const void*> seen{&module};
  detail::add_layers(out, module, "", max_depth, seen);
  detail::each_parameter(module, [&](const at::Tensor& p) {
    out.total_parameters += p.numel();
    if (p.requires_grad()) out.trainable_parameters += p.numel();
    out.size += p.nbytes();
  });
  std::int64_t in_layers = 0;
  for (const LayerSummary& layer : out.layers) in_layers += layer.num_parameters;
  out.other_parameters = std::max<std::int64_t>(out.total_parameters - in_layers, 0);
  return out;
}

FULMEN_INLINE std::string ModuleSummary::render(std::FILE* out) const {
  terminal::Table table({{"", terminal::Align::right, terminal::Style::dim},
                         {"Name"},
                         {"Type"},
                         {"Params", terminal::Align::right},
                         {"Mode"}});
  std::size_t index = 0;
  for (const LayerSummary& layer : layers) {
    table.add_row({std::to_string(index++), layer.name, layer.type, terminal::format_count(layer.num_parameters),
                   layer.training ? "train" : "eval"});
  }
  if (other_parameters > 0)
    table.add_row({"", "other params", "n/a", terminal::format_count(other_parameters), "n/a"});
  table.footer(fmt::format("Trainable params: {}", terminal::format_count(trainable_parameters)));
  table.footer(fmt::format("Non-trainable params: {}",
                           terminal::format_count(total_parameters - trainable_parameters)));
  table.footer(fmt::format("Total params: {} ({})", terminal::format_count(total_parameters),
                           terminal::format_bytes(size)));
  table.footer(fmt::format("Modules in train mode: {}", modules_in_train_mode));
  table.footer(fmt::format("Modules in eval mode: {}", modules_in_eval_mode));
  return table.render(terminal::detect(out));
}

FULMEN_INLINE void ModelSummary::print(const torch::nn::Module& module) const {
  const ModuleSummary summary = summarize(module, max_depth);
  if (max_depth == 0) return;
  std::fputs(summary.render(out).c_str(), out);
  std::fflush(out);
}

#endif

}  // namespace fulmen
