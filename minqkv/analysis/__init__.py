"""Questions asked of operations and models; nothing here is needed to train one."""
