// Compiles and runs the code shown in docs/checkpoints.md.
#include <torch/torch.h>

#include <fulmen/checkpoint/load_weights.hpp>
#include <fulmen/checkpoint/safetensors.hpp>
#include <fulmen/fulmen.hpp>

#include <cstdint>
#include <filesystem>
#include <iostream>
#include <memory>
#include <optional>
#include <string>

struct Net : torch::nn::Module {
  torch::nn::Linear fc;
  explicit Net(std::int64_t classes = 3) : fc(register_module("fc", torch::nn::Linear(4, classes))) {}
};

struct Hparams {
  std::int64_t width = 8;
  double dropout = 0.1;
};
BOOST_HANA_ADAPT_STRUCT(Hparams, width, dropout);

struct Regressor : torch::nn::Module {
  Hparams hparams;
  torch::nn::Linear fc;

  explicit Regressor(Hparams h) : hparams(h), fc(register_module("fc", torch::nn::Linear(h.width, 1))) {}
};

/// fit with "last": a second program goes on where the first one ended.
int goes_on() {
  using namespace fulmen;
  const TensorLoader data{{torch::randn({12, 4}), torch::arange(12) % 3}, {.batch_size = 4, .shuffle = true}};
  std::int64_t steps = 0;
  for (const std::int64_t epochs : {1, 2}) {
    struct Linear : Net {
      torch::Tensor forward(const torch::Tensor& x) { return fc(x); }
    };
    Trainer trainer{Linear{}, CrossEntropy{}, SGD{.lr = 0.1}, none, Identity{}, callbacks(ModelCheckpoint{}), {.max_epochs = epochs}, barebones};
    TensorLoader train = data, val = data;
    trainer.fit(train, val, {.ckpt_path = "last"});
    steps = trainer.context().global_step();
    trainer.test(val, {.ckpt_path = "best"});
    trainer.fit(train, {.ckpt_path = "last"});  // without validation
  }
  return steps == 6 ? 0 : 1;
}

int main() {
  const auto folder = std::filesystem::temp_directory_path() / "fulmen-docs-checkpoints";
  std::filesystem::create_directory(folder);
  std::filesystem::current_path(folder);
  if (goes_on() != 0) return 1;

  Net net, trained;
  fulmen::checkpoint::write("best.ckpt", fulmen::State().set("state_dict", fulmen::module_state(trained)));
  fulmen::load_weights(net, "best.ckpt");
  if (!net.fc->weight.equal(trained.fc->weight)) return 1;

  fulmen::State other;
  other.set("classifier.weight", torch::ones({1000, 4})).set("classifier.bias", torch::ones(3));
  fulmen::checkpoint::write_safetensors("pretrained.safetensors", other.set("optimizer.lr", torch::ones(1)));
  {
    const fulmen::KeyMismatch rest = fulmen::load_weights(
        net, "pretrained.safetensors", {.strict = false, .ignore_mismatched_shapes = true},
        [](const std::string& name) -> std::optional<std::string> {
          if (name.starts_with("optimizer.")) return std::nullopt;
          return name.starts_with("classifier.") ? "fc." + name.substr(11) : name;
        });
    for (const std::string& name : rest.mismatched) std::cout << name << " starts afresh\n";
    if (rest.mismatched.size() != 1 || !rest.missing.empty() || !rest.unexpected.empty()) return 1;
    if (!net.fc->bias.equal(torch::ones(3))) return 1;
  }

  const Regressor regressor({.width = 5});
  fulmen::checkpoint::write("regressor.ckpt",
                            fulmen::State()
                                .set("state_dict", fulmen::module_state(regressor))
                                .set("hyper_parameters", fulmen::hyperparameters_state(regressor.hparams)));
  const std::shared_ptr<Regressor> again = fulmen::load_from_checkpoint<Regressor>("regressor.ckpt");
  if (!again->fc->weight.equal(regressor.fc->weight)) return 1;

  fulmen::checkpoint::write_safetensors("net.safetensors", net, {{"format", "pt"}});
  const fulmen::checkpoint::Safetensors file = fulmen::checkpoint::read_safetensors("net.safetensors");
  std::cout << file.tensors.size() << " tensors, format " << file.metadata.at("format") << '\n';
  const bool right = file.tensors.get<torch::Tensor>("fc.bias").equal(net.fc->bias);

  std::filesystem::current_path(folder.parent_path());
  std::filesystem::remove_all(folder);
  return right ? 0 : 1;
}
