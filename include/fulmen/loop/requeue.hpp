// A SLURM job whose time is up: the checkpoint it leaves, and its return to the queue.
#pragma once

#include <fulmen/compiled.hpp>

#include <filesystem>
#include <string>

#if FULMEN_BODIES
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#endif

namespace fulmen::detail {

/// The id of the SLURM batch job that this process belongs to (`1234`, or `1234_5` in an array); empty in none. Interactive
/// jobs do not count: nobody would start the program again.
std::string slurm_job();

/// Where a job leaves its checkpoint and finds it when it is started again. Its id is in the name, so that no other run
/// takes it up.
std::filesystem::path requeue_checkpoint(const std::filesystem::path& parent, const std::string& job);

/// Sends the job back to the queue: `scontrol requeue <id>`. @return whether scontrol did; if not, says so on stderr
bool requeue(const std::string& job);

#if FULMEN_BODIES
FULMEN_INLINE std::string slurm_job() {
  const auto value = [](const char* name) {
    const char* found = std::getenv(name);
    return std::string(found == nullptr ? "" : found);
  };
  if (value("SLURM_JOB_NAME") == "bash" || value("SLURM_JOB_NAME") == "interactive") return "";
  const std::string array = value("SLURM_ARRAY_JOB_ID"), task = value("SLURM_ARRAY_TASK_ID");
  return array.empty() || task.empty() ? value("SLURM_JOB_ID") : array + "_" + task;
}

FULMEN_INLINE std::filesystem::path requeue_checkpoint(const std::filesystem::path& parent, const std::string& job) {
  return parent / ("hpc_ckpt_" + job + ".ckpt");
}

FULMEN_INLINE bool requeue(const std::string& job) {
  std::string program = "scontrol", command = "requeue", id = job;
  char* const arguments[] = {program.data(), command.data(), id.data(), nullptr};
  pid_t child = 0;
  int status = 0;
  const int error = ::posix_spawnp(&child, program.c_str(), nullptr, nullptr, arguments, environ);
  if (error != 0) {
    std::fprintf(stderr, "fulmen: cannot send job %s back to the queue: scontrol: %s\n", job.c_str(), std::strerror(error));
    return false;
  }
  while (::waitpid(child, &status, 0) == -1 && errno == EINTR) {
  }
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return true;
  std::fprintf(stderr, "fulmen: cannot send job %s back to the queue: scontrol requeue ended with code %d\n", job.c_str(),
               WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
  return false;
}
#endif

}  // namespace fulmen::detail
