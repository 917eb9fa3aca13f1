// Tests that a BackgroundWriter loses nothing: in order, at exits, with full disks and slow ones.
#include <fulmen/loggers/background_writer.hpp>

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "../testing.hpp"
#include "events.hpp"

namespace {

using namespace fulmen;
using namespace std::chrono_literals;

constexpr BackgroundWriterOptions never{.interval = 1h};

std::string lines(int from, int to) {
  std::string out;
  for (int i = from; i < to; ++i) out += "line " + std::to_string(i) + "\n";
  return out;
}

// First, as GoogleTest runs death tests: they fork.

TEST(BackgroundWriterDeathTest, ExitWritesWhatWasAppended) {
  const TemporaryFolder folder;
  const auto path = folder.path / "log";
  EXPECT_EXIT(
      {
        auto& writer = *new BackgroundWriter("log file", never);
        const std::size_t file = writer.add(path, "head\n");
        for (int i = 0; i < 1000; ++i) writer.append(file, lines(i, i + 1));
        std::exit(7);
      },
      testing::ExitedWithCode(7), "");
  EXPECT_EQ(contents_of(path), "head\n" + lines(0, 1000));
}

TEST(BackgroundWriterDeathTest, StaticWritersOutliveTheirList) {
  const TemporaryFolder folder;
  const auto path = folder.path / "log";
  EXPECT_EXIT(
      {
        static BackgroundWriter writer("log file", never);
        const std::size_t file = writer.add(path);
        struct Last {
          std::size_t file;
          ~Last() { writer.append(file, "from a destructor\n"); }
        };
        static const Last last{file};
        writer.append(file, "line\n");
        std::exit(0);
      },
      testing::ExitedWithCode(0), "");
  EXPECT_EQ(contents_of(path), "line\nfrom a destructor\n");
}

TEST(BackgroundWriterDeathTest, AKilledProcessHasWrittenWhatIsOlderThanTheInterval) {
  const TemporaryFolder folder;
  const auto path = folder.path / "log";
  EXPECT_EXIT(
      {
        BackgroundWriter writer("log file", {.interval = 50ms});
        const std::size_t file = writer.add(path);
        for (int i = 0; i < 500; ++i) writer.append(file, lines(i, i + 1));
        std::this_thread::sleep_for(2s);
        for (int i = 500; i < 600; ++i) writer.append(file, lines(i, i + 1));
        std::raise(SIGKILL);
      },
      testing::KilledBySignal(SIGKILL), "");
  const std::string found = contents_of(path);
  EXPECT_EQ(found, lines(0, 600).substr(0, found.size()));
  EXPECT_GE(found.size(), lines(0, 500).size());
}

TEST(BackgroundWriterDeathTest, AForkedChildLeavesTheFileToItsParent) {
  const TemporaryFolder folder;
  const auto path = folder.path / "log";
  BackgroundWriter writer("log file", never);
  const std::size_t file = writer.add(path);
  writer.append(file, "parent\n");
  EXPECT_EXIT(
      {
        writer.append(file, "child\n");
        writer.flush();
        { const BackgroundWriter moved = std::move(writer); }
        std::exit(0);
      },
      testing::ExitedWithCode(0), "");
  writer.flush();
  EXPECT_EQ(contents_of(path), "parent\n");
}

TEST(BackgroundWriterDeathTest, TheDestructorReportsWhatItCouldNotWrite) {
  EXPECT_EXIT(
      {
        {
          BackgroundWriter writer("log file", never);
          writer.append(writer.add("/dev/full"), "line\n");
        }
        std::exit(0);
      },
      testing::ExitedWithCode(0),
      "fulmen: cannot write log file '/dev/full': No space left on device; 5 of 5 bytes are not in it");
}

TEST(BackgroundWriter, WritesByItself) {
  const TemporaryFolder folder;
  BackgroundWriter writer("log file", {.interval = 1ms});
  const std::size_t file = writer.add(folder.path / "log");
  writer.append(file, "line\n");
  for (int i = 0; i < 5000 && contents_of(folder.path / "log").empty(); ++i) std::this_thread::sleep_for(1ms);
  EXPECT_EQ(contents_of(folder.path / "log"), "line\n");
}

TEST(BackgroundWriter, KeepsUntilTheIntervalIsOverOrFlush) {
  const TemporaryFolder folder;
  BackgroundWriter writer("log file", never);
  const std::size_t file = writer.add(folder.path / "log");
  writer.append(file, "line\n");
  std::this_thread::sleep_for(50ms);
  EXPECT_EQ(contents_of(folder.path / "log"), "");
  writer.flush();
  EXPECT_EQ(contents_of(folder.path / "log"), "line\n");
  writer.flush();  // nothing to do
}

TEST(BackgroundWriter, AppendsToWhatIsThere) {
  const TemporaryFolder folder;
  std::ofstream(folder.path / "log") << "before\n";
  {
    BackgroundWriter writer("log file", never);
    writer.append(writer.add(folder.path / "log", "head\n"), "line\n");
  }
  EXPECT_EQ(contents_of(folder.path / "log"), "before\nhead\nline\n");
}

TEST(BackgroundWriter, ManyThreadsAndFilesKeepTheirOrder) {
  const TemporaryFolder folder;
  constexpr int count = 2000;
  {
    BackgroundWriter first("log file", {.interval = 100us, .max_bytes = 4096});
    std::vector<std::thread> threads;
    BackgroundWriter writer = std::move(first);
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&, t] {
        const std::size_t file = writer.add(folder.path / std::to_string(t));
        for (int i = 0; i < count; ++i) {
          writer.append(file, lines(i, i + 1));
          if (i % 500 == 0) writer.flush();
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
  for (int t = 0; t < 4; ++t) EXPECT_EQ(contents_of(folder.path / std::to_string(t)), lines(0, count));
}

TEST(BackgroundWriter, AFullDiskIsAnErrorOfTheNextCallAndNothingIsLost) {
  const TemporaryFolder folder;
  const auto path = folder.path / "log";
  BackgroundWriter writer("log file", never);
  const std::size_t file = writer.add(path, "head\n");
  std::filesystem::rename(path, folder.path / "kept");
  std::filesystem::create_symlink("/dev/full", path);
  writer.append(file, "one\n");
  const std::string expected =
      "cannot write log file '" + path.string() + "': No space left on device; 4 of 4 bytes are not in it";
  EXPECT_EQ(error_of([&] { writer.flush(); }), expected);
  EXPECT_EQ(error_of([&] { writer.flush(); }), expected) << "a second try fails as well";

  BackgroundWriter eager("log file", {.interval = 1ms});
  const std::size_t other = eager.add(folder.path / "other");
  std::filesystem::remove(folder.path / "other");
  std::filesystem::create_symlink("/dev/full", folder.path / "other");
  eager.append(other, "one\n");
  std::this_thread::sleep_for(200ms);
  EXPECT_EQ(error_of([&] { eager.append(other, "two\n"); }).substr(0, 23), "cannot write log file '");
  // Room again.
  std::filesystem::remove(path);
  std::filesystem::rename(folder.path / "kept", path);
  std::filesystem::remove(folder.path / "other");
  writer.append(file, "two\n");
  writer.flush();
  EXPECT_EQ(contents_of(path), "head\none\ntwo\n");
  eager.flush();
  EXPECT_EQ(contents_of(folder.path / "other"), "one\ntwo\n");
}

TEST(BackgroundWriter, MemoryIsBoundedWhereNothingCanBeWritten) {
  const TemporaryFolder folder;
  const auto path = folder.path / "log";
  {
    BackgroundWriter writer("log file", {.interval = 1h, .max_bytes = 100});
    const std::size_t file = writer.add(path);
    std::filesystem::remove(path);
    std::filesystem::create_symlink("/dev/full", path);
    int taken = 0;
    for (int i = 0; i < 1000; ++i) {
      if (error_of([&] { writer.append(file, "0123456789"); }) == "no error") ++taken;
    }
    EXPECT_LE(taken, 10);
    std::filesystem::remove(path);
  }
  const std::string found = contents_of(path);
  EXPECT_EQ(found.size(), 100u);
}

TEST(BackgroundWriter, AppendWaitsForASlowDisk) {
  const TemporaryFolder folder;
  const auto path = folder.path / "log";
  BackgroundWriter writer("log file", {.interval = 1h, .max_bytes = 1000});
  const std::size_t file = writer.add(path);
  std::filesystem::remove(path);
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  std::atomic<int> appended{0};
  std::thread logging([&] {
    for (; appended < 1000; ++appended) writer.append(file, "0123456789");
    writer.flush();
  });
  std::this_thread::sleep_for(300ms);
  EXPECT_LE(appended, 100) << "the pipe has no reader: nothing can be written";
  std::string found;
  while (found.size() < 10000) found += contents_of(path);
  logging.join();
  std::string expected;
  for (int i = 0; i < 1000; ++i) expected += "0123456789";
  EXPECT_EQ(found, expected);
}

TEST(BackgroundWriter, ARecordMayBeLargerThanTheLimit) {
  const TemporaryFolder folder;
  const std::string big(1 << 20, 'x');
  BackgroundWriter writer("log file", {.interval = 1h, .max_bytes = 10});
  const std::size_t file = writer.add(folder.path / "log");
  writer.append(file, big);
  writer.append(file, big);
  writer.flush();
  EXPECT_EQ(contents_of(folder.path / "log"), big + big);
}

TEST(BackgroundWriter, ErrorsNameTheFileAndTheOption) {
  const TemporaryFolder folder;
  BackgroundWriter writer("log file");
  EXPECT_EQ(
      error_of([&] { writer.add(folder.path / "none" / "log"); }),
      "cannot write log file '" + (folder.path / "none" / "log").string() + "': No such file or directory");
  EXPECT_EQ(error_of([] { BackgroundWriter("log file", {.interval = 0s}); }),
            "log file: interval is 0 s, expected more than 0");
  EXPECT_EQ(error_of([] { BackgroundWriter("log file", {.max_bytes = 0}); }),
            "log file: max_bytes is 0, expected at least 1");
}

TEST(BackgroundWriter, AssigningEndsTheOneBefore) {
  const TemporaryFolder folder;
  BackgroundWriter writer("log file", never);
  writer.append(writer.add(folder.path / "a"), "a");
  writer = BackgroundWriter("log file", never);
  EXPECT_EQ(contents_of(folder.path / "a"), "a");
  writer.append(writer.add(folder.path / "b"), "b");
  writer.flush();
  EXPECT_EQ(contents_of(folder.path / "b"), "b");
}

}  // namespace
