// The part of a storage that a tensor covers: what tells which tensors overlap.
#pragma once

#include <fulmen/compiled.hpp>

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace fulmen::checkpoint::detail {

/// Bytes [begin, end) of a storage.
struct StorageRange {
  const void* storage = nullptr;
  std::uint64_t begin = 0, end = 0;

  bool empty() const { return begin == end; }
  bool covers(const StorageRange& other) const {
    return storage == other.storage && begin <= other.begin && other.end <= end;
  }
};

/// Of a dense tensor with a storage. Empty for one without elements, which shares nothing.
StorageRange storage_range(const at::Tensor& tensor);

#if FULMEN_BODIES
FULMEN_INLINE StorageRange storage_range(const at::Tensor& tensor) {
  const auto element = static_cast<std::uint64_t>(tensor.element_size());
  StorageRange range{.storage = tensor.storage().unsafeGetStorageImpl(),
                     .begin = static_cast<std::uint64_t>(tensor.storage_offset()) * element};
  range.end = range.begin;
  if (tensor.numel() == 0) return range;
  std::uint64_t last = 0;
  for (std::int64_t d = 0; d < tensor.dim(); ++d) {
    last += static_cast<std::uint64_t>(tensor.size(d) - 1) * static_cast<std::uint64_t>(tensor.stride(d));
  }
  range.end += (last + 1) * element;
  return range;
}
#endif

}  // namespace fulmen::checkpoint::detail
