"""Pictures as bytes: `check` turns an upload into a safe picture with an id, `decode` into pixels, `stores` keep it."""
