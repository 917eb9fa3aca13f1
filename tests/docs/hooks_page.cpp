// Prints docs/hooks.md from the one list of hooks: hooks_page > docs/hooks.md.
#include <fulmen/loop/hooks.hpp>

#include <cstdio>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <vector>

namespace {

using namespace fulmen;

struct Row {
  std::string_view name, signature, doc;
  HookKind kind;
  Stages stages;
};

std::vector<Row> rows() {
  return []<class... Hook>(std::type_identity<std::tuple<Hook...>>) {
    return std::vector<Row>{{Hook::name, Hook::signature, Hook::doc, Hook::kind, Hook::stages}...};
  }(std::type_identity<hooks::List>{});
}

constexpr std::string_view word(HookKind kind) {
  return kind == HookKind::hook ? "hook" : kind == HookKind::step ? "step" : "action";
}

constexpr const char* before = R"(# Steps, hooks and actions

<!-- Made from the list in include/fulmen/loop/hooks.hpp by tests/docs/hooks_page.cpp; edit those. -->

A **hook** is told to everybody who has a member of its name. A **step** is the module's work on a batch; where the module has none of
its own, a default takes its place, or nothing. An **action** is what the loop does itself unless the module has a member of that name.
Nothing is inherited and nothing is registered: a member of the right name is enough, and what nobody has is not in the program.

## What a member may take

Any leading part of the arguments, so `on_train_batch_end(ctx)` is as good as `on_train_batch_end(ctx, outputs, batch, batch_idx)`. A step
takes `(ctx, batch, batch_idx, dataloader_idx)`, a leading part of that with the batch in it, or the batch alone; `…_step_end` and `…_epoch_end`
take `(ctx, outputs)` or `(outputs)`. A member of a hook's name that can be called with none of these does not compile; the error names
participant, hook and expected signature.

| argument | what it is |
|---|---|
| `ctx` | `fulmen::Context&`, or `auto& ctx` for the context with module, optimizers and callbacks |
| `batch` | what the loader gave, by reference |
| `batch_idx`, `dataloader_idx` | `std::int64_t` from 0; the second counts the loaders of a stage |
| `device` | `at::Device` |
| `loss` | `at::Tensor`, in backward divided by the batches that are accumulated |
| `outputs` | what the step returned, by reference; `fulmen::None` where it returned nothing |
| `all_outputs` | `std::vector` of what the steps of the pass returned |
| `optimizer` | the bound optimizer: `step()`, `zero_grad()`, `groups()` |
| `closure` | callable without arguments: makes the gradients, gives back the loss |
| `scheduler`, `metric` | the bound scheduler; the `double` that it monitors, or `fulmen::None` |
| `exception` | `const std::exception&` |
| `checkpoint` | `fulmen::State&`: what goes to the file, or was read from it |
| `train_loader` | the range of training batches |

## Who is asked, in which order

At a hook: the callbacks in the order of the tuple (the user's, then the default ones), then the module. Callbacks that save checkpoints
(`static constexpr bool saves_checkpoints = true`) come last of all at `on_train_batch_end`, `on_validation_end` and `on_train_epoch_end`, so that a run
goes on from there with nothing left out. A data module is asked first at `prepare_data` and `setup`
and `teardown`, last at `on_exception`. At a batch's transfer the data module's action takes the place of the module's. `trainer.plan()` is the same
table for one Trainer, with who answers what.

## What a member may return

- `training_step`: the loss (a tensor of one element), a struct with a tensor `loss`, or a `std::optional` of either: an empty one, or an undefined
  tensor, leaves this batch out. Nothing where the module says `static constexpr bool automatic_optimization = false`.
- `validation_step`, `test_step`: anything or nothing; `on_…_batch_end` gets it. `predict_step`: anything; `predict` gives back all in a vector.
- `…_step_end`: what is used in place of its argument.
- `on_before_batch_transfer`, `transfer_batch_to_device`, `on_after_batch_transfer`: the new batch, or nothing where it was changed in place.
- `on_train_batch_start`, the module's: -1 skips the rest of the epoch.
- Everything else: what it returns is dropped.
)";

void print(Stage stage, std::string_view title, std::string_view note) {
  std::printf("\n## %s\n\n%s\n\n| | kind | what it is for |\n|---|---|---|\n", title.data(), note.data());
  for (const Row& row : rows()) {
    if (!contains(row.stages, stage)) continue;
    std::string doc;
    for (const char c : row.doc) (c == '|' ? doc += '\\' : doc) += c;
    std::printf("| `%s` | %s | %s |\n", row.signature.data(), word(row.kind).data(), doc.c_str());
  }
}

}  // namespace

int main() {
  std::fputs(before, stdout);
  print(Stage::fit, "fit",
        "In the order in which they first run. Validation runs inside the epoch; in the sanity check before "
        "it as well. Those that are not bound "
        "to a place (`inference_step`, `on_exception`, checkpoints) stand at the end.");
  print(Stage::validate, "validate", "`trainer.validate(loader)`: one pass.");
  print(Stage::test, "test", "`trainer.test(loader)`: one pass.");
  print(Stage::predict, "predict",
        "`trainer.predict(loader)`: one pass; what the steps return is given back.");
}
