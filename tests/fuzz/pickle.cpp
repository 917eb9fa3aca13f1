// Fuzzes the reader of pickles, which in an archive is behind a CRC that a fuzzer does not guess.
#include <fulmen/checkpoint/archive.hpp>
#include <fulmen/checkpoint/atomic_file.hpp>
#include <fulmen/checkpoint/unpickle.hpp>
#include <fulmen/checkpoint/zip.hpp>

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <string_view>

namespace {

using namespace fulmen;

// An archive with three storages, as the seeds have them. Written once.
struct Storages {
  std::filesystem::path path =
      std::filesystem::temp_directory_path() / ("fulmen-fuzz-pickle-" + std::to_string(::getpid()));
  checkpoint::detail::InputFile file{write()};
  checkpoint::detail::ZipReader records{file};

  Storages() { std::filesystem::remove(path); }

  const std::filesystem::path& write() const {
    checkpoint::AtomicFile out(path);
    checkpoint::detail::ZipWriter zip(out, "archive");
    const std::string bytes(64, '\1');
    for (const char* name : {"data/0", "data/1", "data/2"}) zip.add(name, bytes.data(), bytes.size());
    zip.finish();
    out.commit();
    return path;
  }
};

// Every element is looked at: a tensor that reaches beyond its storage would be found.
void touch(const c10::IValue& value) {
  if (value.isTensor() && value.toTensor().defined() && value.toTensor().numel() < 1000)
    value.toTensor().clone();
  if (value.isGenericDict()) {
    for (const auto& entry : value.toGenericDict()) touch(entry.value());
  } else if (value.isList()) {
    for (const c10::IValue& item : value.toListRef()) touch(item);
  } else if (value.isTuple()) {
    for (const c10::IValue& item : value.toTupleRef().elements()) touch(item);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  static const Storages storages;
  const std::string_view pickle(reinterpret_cast<const char*>(bytes), size);
  try {
    touch(checkpoint::detail::Unpickler(pickle, storages.records).unpickle());
  } catch (const c10::Error&) {
  } catch (const std::runtime_error&) {  // of which checkpoint::read() makes one that names the file
  }
  return 0;
}
