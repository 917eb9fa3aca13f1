// Fuzzes read_idx: plain and gzip files.
#include <fulmen/data/idx.hpp>

#include "file.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  static fulmen::fuzz::MemoryFile file("idx");
  fulmen::fuzz::reads([&] {
    const at::Tensor array = fulmen::read_idx(file.hold(bytes, size));
    if (!array.is_contiguous() || array.nbytes() > size * 1100)
      std::abort();  // deflate's best is a factor of 1032
  });
  return 0;
}
