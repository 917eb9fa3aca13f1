// Fuzzes read_safetensors. What has been read can be written, and is the same when it is read again.
#include <fulmen/checkpoint/safetensors.hpp>

#include <cstring>
#include <filesystem>
#include <string>

#include "file.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  static fulmen::fuzz::MemoryFile file("safetensors");
  static const std::filesystem::path again =
      std::filesystem::path("/dev/shm") / ("fulmen-fuzz-safetensors-" + std::to_string(::getpid()));
  namespace checkpoint = fulmen::checkpoint;
  fulmen::fuzz::reads([&] {
    const checkpoint::Safetensors first = checkpoint::read_safetensors(file.hold(bytes, size));
    checkpoint::write_safetensors(again, first.tensors, first.metadata);
    const checkpoint::Safetensors second = checkpoint::read_safetensors(again);
    std::filesystem::remove(again);
    if (first.metadata != second.metadata || first.tensors.size() != second.tensors.size()) std::abort();
    for (const std::string& name : first.tensors.keys()) {
      const at::Tensor a = first.tensors.get<at::Tensor>(name), b = second.tensors.get<at::Tensor>(name);
      if (a.scalar_type() != b.scalar_type() || !a.sizes().equals(b.sizes()) ||
          (a.nbytes() > 0 && std::memcmp(a.const_data_ptr(), b.const_data_ptr(), a.nbytes()) != 0)) {
        std::abort();
      }
    }
  });
  return 0;
}
