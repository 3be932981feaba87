// The page around the component.
import { createRoot } from "react-dom/client";
import { RetinaChat } from "./RetinaChat";

const root = document.getElementById("root");
if (!root) throw new Error("the page has no element #root");
createRoot(root).render(<RetinaChat url={root.dataset["url"] ?? ""} />);
