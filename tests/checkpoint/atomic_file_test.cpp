// Files that are written whole or not at all: errors, full disks, kills.
#include <fulmen/checkpoint/archive.hpp>
#include <fulmen/checkpoint/atomic_file.hpp>
#include <fulmen/checkpoint/state.hpp>

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>

#include "testing.hpp"

namespace fulmen {
namespace {

using ::fulmen::testing::contents;
using ::fulmen::testing::error_of;
using ::fulmen::testing::put;
using ::fulmen::testing::TemporaryFolder;

// Runs `action` in a child process and gives its exit status; -1 if it died otherwise. The child leaves at
// once: LibTorch's threads are not there after fork().
template <class Action>
int in_child(Action&& action) {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(action());
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

State state_of(int number, std::int64_t size) {
  return State().set("number", number).set("w", at::full({size}, number, at::kFloat));
}

class AtomicFileTest : public ::testing::Test {
 protected:
  std::string write_error(const std::filesystem::path& path) {
    return error_of<std::runtime_error>([&] { checkpoint::write(path, state_of(1, 10)); });
  }

  TemporaryFolder folder;
};

TEST_F(AtomicFileTest, AppearsOnlyWhenCommitted) {
  const auto path = folder / "a";
  {
    checkpoint::AtomicFile file(path);
    file.append("new", 3);
    EXPECT_EQ(file.size(), 3u);
    EXPECT_FALSE(std::filesystem::exists(path));
  }
  EXPECT_EQ(folder.count(), 0);
  put(path, "old");
  {
    checkpoint::AtomicFile file(path);
    file.append("new", 3);
    EXPECT_EQ(contents(path), "old");
    file.commit();
    EXPECT_EQ(contents(path), "new");
  }
  EXPECT_EQ(contents(path), "new");
  EXPECT_EQ(folder.count(), 1);
}

TEST_F(AtomicFileTest, HasTheUsualPermissions) {
  const mode_t before = ::umask(0027);
  checkpoint::AtomicFile file(folder / "a");
  file.commit();
  ::umask(before);
  struct stat status {};
  ::stat((folder / "a").c_str(), &status);
  EXPECT_EQ(status.st_mode & 0777, 0640u);
}

TEST_F(AtomicFileTest, ReplacesALinkAndNotWhatItLeadsTo) {
  put(folder / "best", "best");
  std::filesystem::create_symlink("best", folder / "last");
  checkpoint::AtomicFile file(folder / "last");
  file.append("last", 4);
  file.commit();
  EXPECT_EQ(contents(folder / "best"), "best");
  EXPECT_EQ(contents(folder / "last"), "last");
}

TEST_F(AtomicFileTest, WritesIntoTheCurrentFolderAndUnderLongNames) {
  const auto before = std::filesystem::current_path();
  std::filesystem::current_path(folder.path());
  const std::string name(255, 'n');
  checkpoint::write(name, state_of(3, 1));
  checkpoint::write("b.pt", state_of(4, 1));
  EXPECT_EQ(State(checkpoint::read(name)).get<int>("number"), 3);
  EXPECT_EQ(State(checkpoint::read("b.pt")).get<int>("number"), 4);
  std::filesystem::current_path(before);
  EXPECT_EQ(folder.count(), 2);
}

TEST_F(AtomicFileTest, SaysWhyItCannotWrite) {
  put(folder / "file", "");
  const auto prefix = [](const std::filesystem::path& path) {
    return "cannot write checkpoint '" + path.string() + "': ";
  };
  auto path = folder / "file/a.pt";
  EXPECT_EQ(write_error(path),
            prefix(path) + "its folder '" + (folder / "file").string() + "': Not a directory");
  path = folder / "absent/a.pt";
  EXPECT_EQ(write_error(path),
            prefix(path) + "its folder '" + (folder / "absent").string() + "': No such file or directory");
  path = folder / "sub";
  std::filesystem::create_directory(path);
  EXPECT_EQ(write_error(path), prefix(path) + "it is a folder");
  EXPECT_EQ(write_error(path / ""), prefix(path / "") + "the path names no file");
  EXPECT_EQ(write_error(""), prefix("") + "the path names no file");
  // As root, renaming over it would destroy it for the whole machine.
  EXPECT_EQ(write_error("/dev/full"), prefix("/dev/full") + "it is neither a regular file nor a link");
  struct stat status {};
  ASSERT_EQ(::stat("/dev/full", &status), 0);
  EXPECT_TRUE(S_ISCHR(status.st_mode));
}

// A file size limit stands in for a full disk: both make write() fail in the middle. (A full disk itself:
// mount -t tmpfs -o size=1m none <folder>, as root.)
TEST_F(AtomicFileTest, KeepsThePreviousFileWhenTheDiskIsFull) {
  const auto path = folder / "a.pt";
  checkpoint::write(path, state_of(1, 10));
  const std::string before = contents(path);
  // 200 kB of data; the limit comes in the header, in the pickle, in the data, in the directory at the end.
  const State big = state_of(2, 50'000);
  TemporaryFolder other;
  checkpoint::write(other / "a.pt", big);
  const rlim_t size_of_big = std::filesystem::file_size(other / "a.pt");
  for (const rlim_t limit : {rlim_t{10}, rlim_t{100}, rlim_t{700}, rlim_t{4096}, rlim_t{100'000},
                             size_of_big - 300, size_of_big - 22, size_of_big - 1}) {
    EXPECT_EQ(in_child([&] {
                ::signal(SIGXFSZ, SIG_IGN);
                const rlimit size{limit, limit};
                ::setrlimit(RLIMIT_FSIZE, &size);
                const std::string error = error_of<std::runtime_error>([&] { checkpoint::write(path, big); });
                return error == "cannot write checkpoint '" + path.string() + "': File too large" ? 0 : 1;
              }),
              0)
        << limit;
    EXPECT_TRUE(contents(path) == before) << limit;
    EXPECT_EQ(folder.count(), 1);
  }
}

// Where the file system has no unnamed files: the temporary has a name and has to be removed.
TEST_F(AtomicFileTest, WorksWithoutUnnamedFiles) {
  const auto path = folder / "a.pt";
  checkpoint::AtomicFile file(path, "file", /*unnamed=*/false);
  file.append("new", 3);
  EXPECT_EQ(folder.count(), 1);
  EXPECT_FALSE(std::filesystem::exists(path));
  file.commit();
  EXPECT_EQ(contents(path), "new");
  EXPECT_EQ(folder.count(), 1);
  {
    checkpoint::AtomicFile discarded(path, "file", /*unnamed=*/false);
    discarded.append("x", 1);
    EXPECT_EQ(folder.count(), 2);
  }
  EXPECT_EQ(contents(path), "new");
  EXPECT_EQ(folder.count(), 1);
}

// A process that does nothing but save is killed at random times; what is there must be one of its saves,
// whole.
TEST_F(AtomicFileTest, KeepsAWholeFileThroughKills) {
  const auto path = folder / "a.pt";
  checkpoint::write(path, state_of(0, 100'000));
  std::mt19937 random(0);
  int last = 0;
  int advanced = 0;
  for (int round = 0; round < 60; ++round) {
    const pid_t child = ::fork();
    if (child == 0) {
      at::set_num_threads(1);
      for (int number = last + 1;; ++number) checkpoint::write(path, state_of(number, 100'000));
    }
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 30'000));
    ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
    const State state(checkpoint::read(path));
    const int number = state.get<int>("number");
    ASSERT_GE(number, last);
    ASSERT_TRUE(state.get<at::Tensor>("w").eq(number).all().item<bool>());
    advanced += number > last ? 1 : 0;
    last = number;
  }
  EXPECT_GT(advanced, 0);
}

TEST_F(AtomicFileTest, ManyWritersOfOneFile) {
  const auto path = folder / "a.pt";
  std::vector<std::thread> writers;
  for (int number = 1; number <= 4; ++number) {
    writers.emplace_back([&, number] {
      for (int i = 0; i < 20; ++i) checkpoint::write(path, state_of(number, 1000));
    });
  }
  for (std::thread& writer : writers) writer.join();
  const State state(checkpoint::read(path));
  EXPECT_TRUE(state.get<at::Tensor>("w").eq(state.get<int>("number")).all().item<bool>());
  EXPECT_EQ(folder.count(), 1);
}

}  // namespace
}  // namespace fulmen
