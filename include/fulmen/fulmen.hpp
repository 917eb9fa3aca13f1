// Everything. Each header stands alone: include what you need where compile time matters.
#pragma once

#include <fulmen/callbacks/gradient_accumulation_scheduler.hpp>
#include <fulmen/callbacks/metric_monitor.hpp>
#include <fulmen/callbacks/model_checkpoint.hpp>
#include <fulmen/callbacks/model_summary.hpp>
#include <fulmen/callbacks/progress_bar.hpp>
#include <fulmen/criteria/criteria.hpp>
#include <fulmen/data/batch.hpp>
#include <fulmen/data/combined_loader.hpp>
#include <fulmen/data/data_module.hpp>
#include <fulmen/data/idx.hpp>
#include <fulmen/data/loader.hpp>
#include <fulmen/data/tensor_loader.hpp>
#include <fulmen/freeze.hpp>
#include <fulmen/loggers/csv.hpp>
#include <fulmen/loop/result.hpp>
#include <fulmen/metrics/accuracy.hpp>
#include <fulmen/optim/adam.hpp>
#include <fulmen/optim/param_groups.hpp>
#include <fulmen/optim/parameters_of.hpp>
#include <fulmen/optim/sgd.hpp>
#include <fulmen/predict/predictor.hpp>
#include <fulmen/schedule/scheduler.hpp>
#include <fulmen/seed.hpp>
#include <fulmen/trainer.hpp>
