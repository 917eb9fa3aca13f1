// What the tests of checkpoints share: a folder of their own, the message of an error, comparing values.
#pragma once

#include <ATen/ATen.h>
#include <ATen/core/ivalue.h>

#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>

namespace fulmen::testing {

// A new folder, removed with all that is in it.
class TemporaryFolder {
 public:
  TemporaryFolder() : TemporaryFolder(std::filesystem::temp_directory_path()) {}
  explicit TemporaryFolder(const std::filesystem::path& parent) {
    std::string name = (parent / "fulmen-XXXXXX").string();
    const char* made = ::mkdtemp(name.data());
    if (made == nullptr) throw std::runtime_error("cannot make a folder in " + parent.string());
    path_ = made;
  }

  // One in memory where there is such a thing: for tests that write thousands of files, which a disk flushes
  // one by one.
  static TemporaryFolder in_memory() {
    const char* shared = "/dev/shm";
    return ::access(shared, W_OK) == 0 ? TemporaryFolder(shared) : TemporaryFolder();
  }

  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }

  std::filesystem::path operator/(std::string_view name) const { return path_ / name; }
  const std::filesystem::path& path() const { return path_; }

  // How many files are in it, hidden ones too.
  std::ptrdiff_t count() const {
    return std::distance(std::filesystem::directory_iterator(path_), std::filesystem::directory_iterator());
  }

 private:
  std::filesystem::path path_;
};

inline std::filesystem::path fixture(std::string_view name) {
  return std::filesystem::path(FULMEN_TEST_DATA_DIR) / "checkpoint" / name;
}

inline std::string contents(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

inline void put(const std::filesystem::path& path, std::string_view bytes) {
  std::ofstream file(path, std::ios::binary);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

// The message of the Error that `action` throws; empty if it throws none.
template <class Error, class Action>
std::string error_of(Action&& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

inline bool same_tensor(const at::Tensor& a, const at::Tensor& b) {
  if (a.defined() != b.defined()) return false;
  if (!a.defined()) return true;
  if (a.scalar_type() != b.scalar_type() || a.sizes() != b.sizes()) return false;
  // By bytes: NaNs are equal, and dtypes need no kernel of their own.
  const at::Tensor x = a.detach().resolve_conj().resolve_neg().contiguous();
  const at::Tensor y = b.detach().resolve_conj().resolve_neg().contiguous();
  return x.nbytes() == 0 || std::memcmp(x.const_data_ptr(), y.const_data_ptr(), x.nbytes()) == 0;
}

inline bool same(const c10::IValue& a, const c10::IValue& b) {
  if (a.isTensor() && b.isTensor()) return same_tensor(a.toTensor(), b.toTensor());
  if (a.isGenericDict() && b.isGenericDict()) {
    const auto x = a.toGenericDict();
    const auto y = b.toGenericDict();
    if (x.size() != y.size()) return false;
    auto other = y.begin();
    for (const auto& entry : x) {
      if (!same(entry.key(), other->key()) || !same(entry.value(), other->value())) return false;
      ++other;
    }
    return true;
  }
  const auto same_items = [](c10::ArrayRef<c10::IValue> x, c10::ArrayRef<c10::IValue> y) {
    return x.size() == y.size() && std::equal(x.begin(), x.end(), y.begin(), same);
  };
  if (a.isList() && b.isList()) return same_items(a.toListRef(), b.toListRef());
  if (a.isTuple() && b.isTuple()) return same_items(a.toTupleRef().elements(), b.toTupleRef().elements());
  if (a.isDouble() && b.isDouble()) {
    const double x = a.toDouble();
    const double y = b.toDouble();
    return std::memcmp(&x, &y, sizeof(x)) == 0;
  }
  return a.tagKind() == b.tagKind() && a == b;
}

}  // namespace fulmen::testing
