// Where profilers write their reports: a file that is named by the stage, or stdout.
#pragma once

#include <fulmen/compiled.hpp>
#include <fulmen/loop/context.hpp>
#include <fulmen/terminal/table.hpp>

#include <filesystem>
#include <string>

#if FULMEN_BODIES
#include <fulmen/error.hpp>
#include <fulmen/terminal/terminal.hpp>

#include <cerrno>
#include <cstdio>
#include <system_error>
#endif

namespace fulmen::detail {

/// The folder for a profiler's files, which is made: `dirpath`, or the run's folder where that is empty;
/// empty where nothing is to be written (fast_dev_run). @throws std::runtime_error naming the folder if it
/// cannot be made
std::filesystem::path profile_folder(Context& ctx, const std::filesystem::path& dirpath);

/// `<stage>-<filename>`, or the stage alone.
std::string profile_name(Context& ctx, const std::string& filename);

/// `<dirpath>/<stage>-<filename>.txt`; empty where the report goes to stdout: without a filename, or without
/// a folder. Opens it, so that a run does not end with an error that it could have begun with.
/// @throws std::runtime_error naming the file if it cannot be written
std::filesystem::path report_path(Context& ctx, const std::filesystem::path& dirpath,
                                  const std::string& filename);

/// Appends the table to the file, or prints it. @throws std::runtime_error naming the file if it cannot be
/// written
void write_report(const terminal::Table& table, const std::filesystem::path& path);

/// "FIT Profiler Report"
std::string report_title(Stage stage);

/// Throws: cannot write path, for the reason that errno has.
[[noreturn, gnu::cold]] void fail_to_write(const std::filesystem::path& path);

#if FULMEN_BODIES
FULMEN_INLINE std::filesystem::path profile_folder(Context& ctx, const std::filesystem::path& dirpath) {
  if (dirpath.empty()) return ctx.run_dir();
  std::error_code error;
  std::filesystem::create_directories(dirpath, error);
  if (error) fail("cannot make the profiler's folder '{}': {}", dirpath.string(), error.message());
  return dirpath;
}

FULMEN_INLINE std::string profile_name(Context& ctx, const std::string& filename) {
  std::string name(to_string(ctx.stage()));
  if (!filename.empty()) (name += '-') += filename;
  return name;
}

FULMEN_INLINE void fail_to_write(const std::filesystem::path& path) {
  fail("cannot write the profile '{}': {}", path.string(), std::generic_category().message(errno));
}

FULMEN_INLINE std::filesystem::path report_path(Context& ctx, const std::filesystem::path& dirpath,
                                                const std::string& filename) {
  if (filename.empty()) return {};
  const std::filesystem::path folder = profile_folder(ctx, dirpath);
  if (folder.empty()) return {};
  std::filesystem::path path = folder / (profile_name(ctx, filename) + ".txt");
  std::FILE* file = std::fopen(path.c_str(), "ab");
  if (file == nullptr) fail_to_write(path);
  std::fclose(file);
  return path;
}

FULMEN_INLINE void write_report(const terminal::Table& table, const std::filesystem::path& path) {
  if (path.empty()) {
    std::fputs(table.render(terminal::detect(stdout)).c_str(), stdout);
    return;
  }
  const std::string text = table.render({}) + '\n';
  std::FILE* file = std::fopen(path.c_str(), "ab");
  const bool written = file != nullptr && std::fwrite(text.data(), 1, text.size(), file) == text.size();
  const bool closed = file != nullptr && std::fclose(file) == 0;
  if (!written || !closed) fail_to_write(path);
}

FULMEN_INLINE std::string report_title(Stage stage) {
  std::string title(to_string(stage));
  for (char& c : title) c = static_cast<char>(c - 'a' + 'A');
  return title + " Profiler Report";
}
#endif

}  // namespace fulmen::detail
