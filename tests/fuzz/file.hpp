// What the fuzzing programs share: a file in memory with the bytes of one input, and the errors that readers
// may give.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <stdexcept>
#include <string>

namespace fulmen::fuzz {

// A regular file that no disk knows.
class MemoryFile {
 public:
  explicit MemoryFile(const char* name) : file_(::memfd_create(name, MFD_CLOEXEC)) {
    if (file_ < 0) std::abort();
    path_ = "/proc/self/fd/" + std::to_string(file_);
  }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;
  ~MemoryFile() { ::close(file_); }

  const std::filesystem::path& hold(const std::uint8_t* bytes, std::size_t size) {
    if (::ftruncate(file_, 0) != 0) std::abort();
    for (std::size_t done = 0; done < size;) {
      const ssize_t written = ::pwrite(file_, bytes + done, size - done, static_cast<off_t>(done));
      if (written <= 0) std::abort();
      done += static_cast<std::size_t>(written);
    }
    return path_;
  }

 private:
  int file_;
  std::filesystem::path path_;
};

// Reads, and gives whether that went well. What is no std::runtime_error of one line ends the program, which
// the fuzzer reports.
template <class Read>
bool reads(Read&& read) {
  try {
    read();
    return true;
  } catch (const std::runtime_error& error) {
    if (std::string(error.what()).find('\n') != std::string::npos) std::abort();
    return false;
  }
}

}  // namespace fulmen::fuzz
