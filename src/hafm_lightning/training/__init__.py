"""What training needs beside Lightning's own hooks: its private names, what parts offer each other, means of scores."""
