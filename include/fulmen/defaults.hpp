// What every Trainer gets unless it is told otherwise: the terminal, a CSV log, the last checkpoint.
#pragma once

#include <fulmen/callbacks/model_checkpoint.hpp>
#include <fulmen/callbacks/model_summary.hpp>
#include <fulmen/callbacks/progress_bar.hpp>
#include <fulmen/loggers/csv.hpp>
#include <fulmen/runtime.hpp>

#include <tuple>

namespace fulmen {

/// Each of these callbacks gives way to one of its type among the user's; Options::enable_… switch them off at run time,
/// `fulmen::barebones` as the Trainer's last argument leaves them out of the program.
using DefaultRuntime = Runtime<std::tuple<CSVLogger>, std::tuple<ModelSummary, ProgressBar, ModelCheckpoint>>;

}  // namespace fulmen
