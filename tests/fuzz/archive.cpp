// Fuzzes checkpoint::read: zip archives with pickles in them.
#include <fulmen/checkpoint/archive.hpp>

#include "file.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  static fulmen::fuzz::MemoryFile file("archive");
  fulmen::fuzz::reads([&] { fulmen::checkpoint::read(file.hold(bytes, size)); });
  return 0;
}
