// What several tests need: a folder of their own, and the message of an exception.
#pragma once

#include <cstdlib>
#include <exception>
#include <filesystem>
#include <string>

/// A folder of the test's own, gone afterwards.
struct TemporaryFolder {
  std::filesystem::path path;
  TemporaryFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "fulmen-XXXXXX").string();
    path = ::mkdtemp(name.data());
  }
  ~TemporaryFolder() { std::filesystem::remove_all(path); }
};

/// What the call throws says; "no error" if it throws nothing.
template <class F>
std::string error_of(F&& call) {
  try {
    call();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "no error";
}
