"""What watches router and worker and cannot fail them: lines written by threads of their own, counted where they are lost."""
