// The shape of a tensor as messages have it.
#pragma once

#include <fulmen/compiled.hpp>

#include <c10/util/ArrayRef.h>

#include <cstdint>
#include <string>

namespace fulmen::detail {

/// "[3, 28, 28]".
std::string shape_text(c10::IntArrayRef sizes);

#if FULMEN_BODIES
FULMEN_INLINE std::string shape_text(c10::IntArrayRef sizes) {
  std::string text = "[";
  for (const std::int64_t size : sizes) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  return text + "]";
}
#endif

}  // namespace fulmen::detail
