// Hyper-parameters as loggers write them: a State made flat, each value as Python writes it.
#pragma once

#include <fulmen/checkpoint/state.hpp>
#include <fulmen/compiled.hpp>

#include <optional>
#include <string>
#include <vector>

#if FULMEN_BODIES
#include <fulmen/error.hpp>
#include <fulmen/shape_text.hpp>

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include <cmath>
#endif

namespace fulmen::detail {

struct Hyperparameter {
  std::string name;              ///< of nested ones with '/' between: "optimizer/lr"
  std::string text;              ///< Python's str() of the value: "0.001", "True", "[1, 2]"
  std::optional<double> number;  ///< of a bool, a number, and a tensor of one element
};

/// What Lightning's loggers make of a dict of hyper-parameters.
std::vector<Hyperparameter> flat_hyperparameters(const State& params);

/// Python's repr() of a float: the fewest digits that read back to the same bits, and a point or an exponent.
std::string float_text(double value);

#if FULMEN_BODIES

FULMEN_INLINE std::string float_text(double value) {
  std::string text = detail::format("{}", value);
  if (std::isfinite(value) && text.find_first_of(".e") == std::string::npos) text += ".0";
  return text;
}

FULMEN_INLINE std::string value_text(const c10::IValue& value, bool inside) {
  if (value.isNone()) return "None";
  if (value.isBool()) return value.toBool() ? "True" : "False";
  if (value.isInt()) return detail::format("{}", value.toInt());
  if (value.isDouble()) return float_text(value.toDouble());
  if (value.isString()) return inside ? '\'' + value.toStringRef() + '\'' : value.toStringRef();
  if (value.isTensor()) return "tensor of shape " + shape_text(value.toTensor().sizes());
  if (value.isList() || value.isTuple()) {
    std::string text = value.isList() ? "[" : "(";
    const auto add = [&](const c10::IValue& item) {
      if (text.size() > 1) text += ", ";
      text += value_text(item, true);
    };
    if (value.isList()) {
      for (const c10::IValue& item : value.toListRef()) add(item);
    } else {
      for (const c10::IValue& item : value.toTupleRef().elements()) add(item);
    }
    return text + (value.isList() ? "]" : ")");
  }
  return kind_of(value);
}

FULMEN_INLINE void flatten(const std::string& prefix, const c10::impl::GenericDict& dict,
                           std::vector<Hyperparameter>& out) {
  for (const auto& entry : dict) {
    const std::string name =
        prefix + (entry.key().isString() ? entry.key().toStringRef() : value_text(entry.key(), false));
    const c10::IValue& value = entry.value();
    if (value.isGenericDict()) {
      flatten(name + "/", value.toGenericDict(), out);
      continue;
    }
    Hyperparameter& param = out.emplace_back(Hyperparameter{name, value_text(value, false), std::nullopt});
    if (value.isBool())
      param.number = value.toBool() ? 1 : 0;
    else if (value.isInt())
      param.number = static_cast<double>(value.toInt());
    else if (value.isDouble())
      param.number = value.toDouble();
    else if (value.isTensor() && value.toTensor().numel() == 1) {
      param.number = value.toTensor().item().toDouble();
      param.text = float_text(*param.number);
    }
  }
}

FULMEN_INLINE std::vector<Hyperparameter> flat_hyperparameters(const State& params) {
  std::vector<Hyperparameter> out;
  flatten("", params.dict(), out);
  return out;
}

#endif

}  // namespace fulmen::detail
