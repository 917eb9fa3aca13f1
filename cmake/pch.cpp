// A target that owns a precompiled header must compile something.
