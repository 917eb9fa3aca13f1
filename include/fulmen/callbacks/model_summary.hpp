// ModelSummary: the table of layers, types and parameters that fit prints before it starts.
#pragma once

#include <fulmen/compiled.hpp>
#include <fulmen/loop/context.hpp>

#include <cstdio>

#if FULMEN_BODIES
#include <fulmen/terminal/table.hpp>
#include <fulmen/terminal/terminal.hpp>

#include <torch/nn/module.h>

#include <fmt/format.h>

#include <cstdint>
#include <string>
#else
// Enough to pass one on. Its header includes TorchScript's, and takes longer to read than the rest of this one's includes.
namespace torch::nn {
class Module;
}
#endif

namespace fulmen {

/// Prints name, type, parameters and mode of the module's layers down to `max_depth`, and the totals. Not printed where
/// Options::enable_model_summary is off.
struct ModelSummary {
  int max_depth = 1;
  std::FILE* out = stdout;

  template <class Ctx>
  void on_fit_start(Ctx& ctx) {
    if (ctx.options().enable_model_summary) print(ctx.module());
  }

  void print(const torch::nn::Module& module) const;
};

#if FULMEN_BODIES

namespace detail {

struct ParameterCount {
  std::int64_t trainable = 0, frozen = 0;
  std::uint64_t bytes = 0;

  void add(const at::Tensor& parameter) {
    (parameter.requires_grad() ? trainable : frozen) += parameter.numel();
    bytes += parameter.nbytes();
  }
};

inline ParameterCount count_parameters(const torch::nn::Module& module) {
  ParameterCount count;
  for (const at::Tensor& p : module.parameters()) count.add(p);
  return count;
}

/// `torch::nn::Conv2dImpl` is called Conv2d, as in Python.
inline std::string layer_type(const torch::nn::Module& module) {
  std::string name = module.name();
  if (const auto colon = name.rfind("::"); colon != std::string::npos) name.erase(0, colon + 2);
  if (name.size() > 4 && name.ends_with("Impl")) name.resize(name.size() - 4);
  return name;
}

inline void add_layers(terminal::Table& table, const torch::nn::Module& module, const std::string& prefix, int depth,
                       int& index) {
  if (depth == 0) return;
  for (const auto& child : module.named_children()) {
    const ParameterCount count = count_parameters(*child.value());
    table.add_row({std::to_string(index++), prefix + child.key(), layer_type(*child.value()),
                   terminal::format_count(count.trainable + count.frozen),
                   child.value()->is_training() ? "train" : "eval"});
    add_layers(table, *child.value(), prefix + child.key() + ".", depth - 1, index);
  }
}

}  // namespace detail

FULMEN_INLINE void ModelSummary::print(const torch::nn::Module& module) const {
  terminal::Table table({{"", terminal::Align::right, terminal::Style::dim},
                         {"Name"},
                         {"Type"},
                         {"Params", terminal::Align::right},
                         {"Mode"}});
  int index = 0;
  detail::add_layers(table, module, "", max_depth, index);
  const detail::ParameterCount count = detail::count_parameters(module);
  table.footer(fmt::format("Trainable params: {}", terminal::format_count(count.trainable)));
  table.footer(fmt::format("Non-trainable params: {}", terminal::format_count(count.frozen)));
  table.footer(fmt::format("Total params: {} ({})",
                           terminal::format_count(count.trainable + count.frozen),
                           terminal::format_bytes(count.bytes)));
  std::fputs(table.render(terminal::detect(out)).c_str(), out);
  std::fflush(out);
}

#endif

}  // namespace fulmen
